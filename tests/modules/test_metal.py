"""MeTAL against a plain loop in float64: the meta-gradient by the network, the loss networks and what fits them to the task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import MAML, MLP, Batch, ConfigError, Episode, MeTAL
from tests.algorithms import Smooth
from tests.networks import noise_episode

Params = dict[str, Tensor]


def make(net: nn.Module | None = None, **options: Any) -> MeTAL:
    """A module whose learned losses are no longer at their start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = MeTAL(net or Smooth().double(), **{"inner_steps": 2, "inner_lr": 0.3, **options}).double()
        with torch.no_grad():
            for value in module.solver.parameters():
                value += 0.3 * torch.randn_like(value)
    return module


def standardise(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()


def learned_loss(step: Any, state: Tensor, outputs: Tensor, wanted: Tensor) -> Tensor:
    """Of one task, by the networks of one step."""
    made = step.generator(standardise(state))
    first, _, last = step.loss
    fitted = [
        (1 + step.factors[index] * made[index]) * value + step.shifts[index] * made[4 + index]
        for index, value in enumerate((first.weight, first.bias, last.weight, last.bias))
    ]
    rows = standardise(torch.cat([state.expand(len(outputs), -1), outputs, wanted], 1))
    return ((rows @ fitted[0].T + fitted[1]).relu() @ fitted[2].T + fitted[3]).mean()


def move(module: MeTAL, step: int, params: Params, grads: Params) -> Params:
    """The weights after a step of 0.3, or one whose sizes and decays are generated."""
    if not module.options.generates_steps:  # type: ignore[attr-defined]
        return {name: params[name] - 0.3 * grad for name, grad in grads.items()}
    steps: Any = module.solver.steps
    means = [values[name].mean() for values in (grads, params) for name in params]
    factors = 1 + steps.generator(torch.stack(means))
    rates, decays = factors[: len(params)] * steps.rates[step], factors[len(params) :] * steps.decays[step]
    return {name: decays[i] * params[name] - rates[i] * grads[name] for i, name in enumerate(params)}


def loop(
    module: MeTAL, task: tuple[Tensor, ...], loss: Any, wanted: Tensor, frozen: str = "", rows: Any = lambda made: made
) -> Tensor:
    """The query loss after two steps; ``wanted`` holds a row for each of those that ``rows`` makes of outputs."""
    net, solver = module.backbone, module.solver
    params = dict(net.named_parameters())
    names = [name for name in params if name != frozen]
    for step in range(2):
        outputs = functional_call(net, params, (task[0],))
        of_support = loss(outputs, task[1])
        means = [params[n].mean() if n != frozen else torch.zeros(()).double() for n in params]
        state = torch.stack([of_support, *means])
        total = of_support + learned_loss(solver.losses[step], state, rows(outputs), wanted)  # type: ignore[index, union-attr]
        grads = torch.autograd.grad(total, [params[n] for n in names], create_graph=True)
        params |= move(module, step, params, dict(zip(names, grads, strict=True)))
    return loss(functional_call(net, params, (task[2],)), task[3])


def check(module: MeTAL, episode: Episode, losses: list[Tensor]) -> None:
    """The meta-gradient is that of these losses of tasks, by every parameter that is trainable."""
    outer = {name: value for name, value in module.named_parameters() if value.requires_grad}
    expected = dict(zip(outer, torch.autograd.grad(torch.stack(losses).mean(), list(outer.values())), strict=True))
    grads = module.meta_gradient(episode)
    assert grads.keys() == expected.keys()
    reached = [bool(value.any()) for name, value in grads.items() if name.startswith("solver.")]
    assert sum(reached) > len(reached) / 2  # some unit of a small network may be off
    for name, value in expected.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("execution", "memory", "frozen"),
    [("sequential", "store", ""), ("vectorized", "remat", "body.1.bias"), ("vectorized", "mixed", "")],
)
def test_the_meta_gradient_is_that_of_a_plain_loop(execution: Any, memory: str, frozen: str) -> None:
    module, episode = make(execution=execution, memory=memory), noise_episode(2)
    for name, value in module.backbone.named_parameters():
        value.requires_grad_(name != frozen)
    (xs, ys), (xq, yq) = episode
    tasks = zip(xs, ys, xq, yq, strict=True)
    check(module, episode, [loop(module, t, F.cross_entropy, F.one_hot(t[1], 3).double(), frozen) for t in tasks])


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_steps_may_be_generated_too(execution: Any) -> None:
    module, episode = make(execution=execution, generates_steps=True), noise_episode(2)
    (xs, ys), (xq, yq) = episode
    tasks = zip(xs, ys, xq, yq, strict=True)
    check(module, episode, [loop(module, t, F.cross_entropy, F.one_hot(t[1], 3).double()) for t in tasks])
    assert module.step_sizes is None


@pytest.mark.parametrize("loss", ["mse", "gaussian_nll"])
def test_targets_of_a_regression_join_the_outputs(loss: Any) -> None:
    """Where a target has several outputs, what is missing counts as 0."""
    outputs = 2 if loss == "mse" else 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double(), loss=loss)
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 10, size, generator=draw, dtype=torch.float64) for size in (3, 2))
    episode = Episode(Batch(x[:, :4], y[:, :4]), Batch(x[:, 4:], y[:, 4:]))

    def likelihood(made: Tensor, wanted: Tensor) -> Tensor:
        return F.gaussian_nll_loss(made[:, :2], wanted, F.softplus(made[:, 2:]) + 1e-6, full=True)

    (xs, ys), (xq, yq) = episode
    plain: Any = F.mse_loss if loss == "mse" else likelihood
    tasks = zip(xs, ys, xq, yq, strict=True)
    check(module, episode, [loop(module, t, plain, F.pad(t[1], (0, outputs - 2))) for t in tasks])


def test_places_of_an_example_count_alike_and_those_without_a_label_not_at_all() -> None:
    """Labels of places: each is an example, and one that the loss ignores is left out."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Unflatten(1, (3, 2))).double()
    module = make(net, outputs=3)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(1, 9, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (1, 9, 2), generator=draw)
    y[0, 1, 0] = y[0, 7, 1] = -100
    (task,) = zip(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], strict=True)
    kept = task[1].flatten() >= 0
    wanted = F.one_hot(task[1].flatten()[kept], 3).double()

    check(
        module,
        Episode(Batch(x[:, :5], y[:, :5]), Batch(x[:, 5:], y[:, 5:])),
        [loop(module, task, F.cross_entropy, wanted, rows=lambda made: made.transpose(1, 2).flatten(0, 1)[kept])],
    )


def test_it_starts_as_maml_and_learns_another_loss() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Smooth().double()
    (xs, ys), (xq, _) = episode = noise_episode(1)
    batch = Batch(xs[0], ys[0])
    module = MeTAL(net, inner_steps=3, inner_lr=0.25).double()
    plain = MAML(net, inner_steps=3, inner_lr=0.25).adapt(batch)(xq[0])
    torch.testing.assert_close(module.adapt(batch)(xq[0]), plain)
    optimizer = torch.optim.SGD(module.solver.parameters(), lr=1.0)
    before = float(module.meta_loss(episode).loss.detach())
    for _ in range(3):
        optimizer.zero_grad()
        module.meta_loss(episode).loss.backward()
        optimizer.step()
    assert float(module.meta_loss(episode).loss.detach()) < before
    assert not torch.allclose(module.adapt(batch)(xq[0]), plain)


def test_step_sizes_may_be_learned_and_rules_be_others() -> None:
    module = make(inner_lr="learn_per_step", inner_optimizer="adam", initial_inner_lr=0.1, multi_step_loss=5)
    grads = module.meta_gradient(noise_episode(2))
    assert bool(grads["solver.steps.step_sizes.learned"].all())


def test_more_classes_than_outputs_are_refused_and_other_layers_followed() -> None:
    module, (support, query) = make(), noise_episode(1, ways=5)
    with pytest.raises(ConfigError, match=r"a task has 5 outputs.*made for 3; use tasks of at most 3 classes"):
        module.adapt(Batch(support.x[0], support.y[0]), ways=5)
    module.backbone.head = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5)).double()  # type: ignore[assignment]
    module.configure_optimizers()
    assert module.double().adapt(Batch(support.x[0], support.y[0]))(query.x[0]).shape == (len(query.x[0]), 5)
    assert module.solver.losses[0].loss[0].in_features == 1 + 6 + 2 * 5  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"inner_lr": "learn"}, "inner_lr is 'learn' with generates_steps.*use inner_lr=0.01"),
        ({"inner_optimizer": "adam"}, "inner_optimizer is 'adam' with generates_steps.*leave inner_optimizer out"),
        ({"inner_clip_norm": 1.0}, "inner_clip_norm is 1.0 with generates_steps"),
    ],
)
def test_what_generated_steps_do_not_take(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        MeTAL(MLP(), generates_steps=True, **options)


def test_outputs_that_cannot_be_counted() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(ConfigError, match=r"Sequential has no torch.nn.Linear.*outputs=5"):
        MeTAL(net)
    (xs, ys), (xq, _) = noise_episode(1, dtype=torch.float32)
    assert MeTAL(net, outputs=3, inner_steps=2).adapt(Batch(xs[0], ys[0]))(xq[0]).shape == (len(xq[0]), 3)
    with pytest.raises(ConfigError, match="outputs is 0"):
        MeTAL(MLP(), outputs=0)
