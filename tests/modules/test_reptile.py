"""Reptile's direction against its closed form on quadratics, and the step that it makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import Batch, ConfigError, Episode, Reptile
from tests.modules.episodic.test_evaluation import trainer
from tests.networks import noise_episode


def quadratics(tasks: int = 3) -> Episode:
    """Linear regressions, whose losses are quadratic in the weights."""
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(tasks, 7, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    slopes = torch.randn(tasks, 4, 1, generator=generator, dtype=torch.float64)
    return Episode(*(Batch(x, x @ slopes + 0.1 * x[..., :1] ** 2) for x in sets))


def solve(x: Tensor, y: Tensor, start: Tensor, rate: float, steps: int) -> Tensor:
    """``c + M^N (w - c)`` with ``M = I - rate A``, for the loss ``mean (x w - y)^2``."""
    curvature = 2 * x.T @ x / len(x)
    best = torch.linalg.lstsq(x, y).solution[:, 0]
    shrink = torch.eye(4, dtype=x.dtype) - rate * curvature
    return best + torch.linalg.matrix_power(shrink, steps) @ (start - best)


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(4, 1, bias=False).double()


@pytest.mark.parametrize("joins_queries", [True, False])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_the_direction_is_the_closed_form_on_quadratics(joins_queries: bool, execution: Any) -> None:
    net, episode = linear(), quadratics()
    start = net.weight.detach()[0].clone()
    module = Reptile(net, inner_steps=4, inner_lr=0.05, loss="mse", joins_queries=joins_queries, execution=execution)
    ways = []
    for support, query in zip(zip(*episode.support, strict=True), zip(*episode.query, strict=True), strict=True):
        x, y = (torch.cat(pair) if joins_queries else pair[0] for pair in zip(support, query, strict=True))
        ways.append(start - solve(x, y, start, 0.05, 4))
    direction = module.meta_gradient(episode)["backbone.weight"][0]
    torch.testing.assert_close(direction, torch.stack(ways).mean(0), rtol=1e-10, atol=1e-12)


def test_a_step_of_sgd_of_size_one_goes_to_the_mean_of_the_adapted_weights() -> None:
    net, episode = linear(), quadratics()
    start = net.weight.detach()[0].clone()
    module = Reptile(
        net, inner_steps=2, inner_lr=0.1, loss="mse", joins_queries=False,
        outer_optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
    )  # fmt: skip
    optimizer = module.configure_optimizers()
    module.training_step(episode, 0).backward()
    optimizer.step()
    ends = [solve(x, y, start, 0.1, 2) for x, y in zip(*episode.support, strict=True)]
    torch.testing.assert_close(net.weight.detach()[0], torch.stack(ends).mean(0))
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    end = solve(episode.support.x[0], episode.support.y[0], net.weight.detach()[0], 0.1, 2)
    torch.testing.assert_close(adapted.params["weight"][0], end)


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Any) -> None:
    episode = quadratics(4)
    halves = [
        Episode(*(Batch(*(tensor[2 * half : 2 * half + 2] for tensor in role)) for role in episode)) for half in (0, 1)
    ]
    weights = []
    for batches, count in (([episode], 1), (halves, 2)):
        net = linear()
        module = Reptile(
            net, inner_steps=3, inner_lr=0.1, loss="mse", outer_optimizer=lambda params: torch.optim.SGD(params, lr=0.5)
        )
        run = trainer(tmp_path, max_steps=1, accumulate_grad_batches=count, limit_val_batches=0)
        loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        run.fit(module, loader, loader)
        weights.append(net.weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_what_it_cannot_learn_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"inner_lr is 'learn', but Reptile has no gradient.*use 0.4"):
        Reptile(linear(), inner_lr="learn")  # type: ignore[arg-type]
    loss = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(
        ConfigError, match=r"loss is a Sequential with parameters, but Reptile.*requires_grad_\(False\)"
    ):
        Reptile(linear(), loss=loss)


def test_a_frozen_layer_does_not_move() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net[0].requires_grad_(False)
    grads = Reptile(net, inner_steps=2).meta_gradient(noise_episode(2, shape=(4,), dtype=torch.float32))
    assert set(grads) == {"backbone.2.weight", "backbone.2.bias"}
