"""Buffers that a forward pass writes move on once a training step, to what plain passes over the support sets leave in them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from metalearn import ANIL, MAML, Batch, Episode, Pooled
from tests.modules.problem_based.test_bilevel_module import trainer
from tests.networks import TinyConv, noise_episode


class Writing(nn.Module):
    """Adds what its layer computes of an input to a linear map of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.write(self.body(x)))

    def write(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class Running(Writing):
    """Normalises by running moments, which it puts into new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("scale", torch.ones(4))

    def write(self, z: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * z.detach().mean(0)
            self.scale = 0.9 * self.scale + 0.1 * z.detach().std(0)
        return (z - self.mean) / self.scale


class Counting(Writing):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("constant", torch.ones(4))

    def write(self, z: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return z * self.constant


class CodeBook(Writing):
    """Vector quantisation whose codes are moving averages (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("codes", torch.randn(5, 4, generator=generator))
        self.register_buffer("sizes", torch.ones(5))

    def write(self, z: Tensor) -> Tensor:
        chosen = torch.cdist(z.detach(), self.codes).argmin(1)
        if self.training:
            hits = nn.functional.one_hot(chosen, 5).to(z.dtype)
            self.sizes.mul_(0.9).add_(0.1 * hits.sum(0))
            self.codes.lerp_((hits.T @ z.detach() + self.codes) / (1 + hits.sum(0))[:, None], 0.1)
        return z + (self.codes[chosen] - z).detach()


class Queue(Writing):
    """A ring of past features, and the place of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("past", torch.zeros(24, 4))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def write(self, z: Tensor) -> Tensor:
        if self.training:
            rows = (int(self.place) + torch.arange(len(z))) % len(self.past)
            self.past[rows] = z.detach()
            self.place.copy_((self.place + len(z)) % len(self.past))
        return z + self.past.mean(0)


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


def spectral_in_hooks() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


class MixedNorm(nn.Module):
    """Batch normalisation, whose policy is another, beside a layer that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.rest = nn.Linear(4, 4), nn.BatchNorm1d(4), instance_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.first(x)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "instance_norm": instance_norm, "running": Running, "counting": Counting, "code_book": CodeBook, "queue": Queue,
    "spectral": spectral, "spectral_in_hooks": spectral_in_hooks,
}  # fmt: skip


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, where it batches by a loop
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_leaves_what_plain_passes_over_the_support_sets_leave(name: str, execution: str) -> None:
    torch.manual_seed(0)
    net, stock = (copy.deepcopy(net) for net in [NETWORKS[name]().double()] * 2)
    before = buffers(net)
    module = MAML(net, inner_steps=2, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]
    for seed in (0, 1):
        episode = noise_episode(shape=(4,), seed=seed)
        module.training_step(episode, 0)
        for x in episode.support.x:
            stock(x)
        for key, value in stock.named_buffers():
            torch.testing.assert_close(net.get_buffer(key), value)
    assert any(not torch.equal(value, before[key]) for key, value in net.named_buffers())


@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize("name", ["instance_norm", "running", "spectral"])
def test_nothing_but_training_writes(name: str, kind: type[MAML | ANIL], tmp_path: Path) -> None:
    net = NETWORKS[name]()
    options = {"head": "head" if name == "running" else "3" if name == "instance_norm" else "2"} if kind is ANIL else {}
    module, episode = kind(net, inner_steps=1, **options), noise_episode(shape=(4,), dtype=torch.float32)  # type: ignore[arg-type]
    before = buffers(net)
    module.meta_gradient(episode)
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    adapted(episode.query.x[0])
    loader = torch.utils.data.DataLoader([Episode(*(Batch(role.x[0], role.y[0]) for role in episode))], batch_size=1)  # type: ignore[var-annotated, list-item]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*many workers")
        trainer(tmp_path).test(module, loader, verbose=False)
    assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())


def test_an_adapted_network_keeps_its_buffers() -> None:
    net, episode = Running(), noise_episode(shape=(4,), dtype=torch.float32)
    module = MAML(net, inner_steps=1)
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    expected = adapted(episode.query.x[0])
    module.training_step(episode, 0)
    assert float(net.mean.abs().sum()) > 0  # type: ignore[operator, union-attr]
    assert torch.equal(adapted(episode.query.x[0]), expected)


@pytest.mark.parametrize("kind", [MAML, Pooled])
def test_batch_normalisation_stays_as_its_policy_says(kind: type[MAML]) -> None:
    net, episode = MixedNorm(), noise_episode(shape=(4,), dtype=torch.float32)
    kind(net, inner_steps=1).training_step(episode, 0)
    assert float(net.norm.running_mean.abs().sum()) == 0.0  # type: ignore[union-attr]
    assert int(net.norm.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert float(net.rest[1].running_mean.abs().sum()) > 0.0


def test_the_random_numbers_of_a_step_stay_what_they_were() -> None:
    """The passes that write draw dropout masks again, and give the generator back as it was."""
    torch.manual_seed(0)
    net = nn.Sequential(instance_norm(), nn.Dropout(0.5), nn.Linear(3, 3))
    episode = noise_episode(shape=(4,), dtype=torch.float32)
    module = MAML(net, inner_steps=1, execution="sequential")
    module.training_step(episode, 0)
    states = []
    for step in (lambda: module.meta_loss(episode), lambda: module.training_step(episode, 0)):
        torch.manual_seed(1)
        step()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("build", [spectral, spectral_in_hooks])
@pytest.mark.parametrize("evaluates", [False, True])
def test_spectral_normalisation_keeps_up_with_training(
    build: Callable[[], nn.Sequential], evaluates: bool, tmp_path: Path
) -> None:
    """The largest singular value is near 1 after many outer steps, also of a network that somebody has put into ``eval()``."""
    torch.manual_seed(0)
    net = build()
    net.train(not evaluates)
    module = MAML(net, inner_steps=1, inner_lr=0.1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for step in range(40):
        optimizer.zero_grad()
        module.training_step(noise_episode(shape=(4,), seed=step, dtype=torch.float32), 0).backward()
        optimizer.step()
    net.eval()(torch.zeros(1, 4))
    assert torch.linalg.matrix_norm(net[0].weight.detach(), 2) == pytest.approx(1.0, abs=0.05)
    copy.deepcopy(module)


def test_running_statistics_serve_evaluation() -> None:
    """Inputs far from 0: with buffers that never moved, evaluation would see other features than training."""
    torch.manual_seed(0)
    net = instance_norm()
    module = MAML(net, inner_steps=1, inner_lr=0.1)
    for step in range(60):
        episode = noise_episode(shape=(4,), seed=step, dtype=torch.float32)
        module.training_step(Episode(*(Batch(20 + 5 * role.x, role.y) for role in episode)), 0)
    assert net[1].running_mean.tolist() == pytest.approx([20.0, 20.0], abs=2.0)
    assert net[1].running_var.tolist() == pytest.approx([25.0, 25.0], abs=12.0)


def test_a_network_that_writes_nothing_is_not_passed_again() -> None:
    net = TinyConv()
    net.register_buffer("constant", torch.ones(3))
    calls: list[int] = []
    module, episode = MAML(net, inner_steps=1), noise_episode(dtype=torch.float32)
    module.training_step(episode, 0)
    handle = nn.modules.module.register_module_forward_hook(
        lambda layer, *_: calls.append(1) if isinstance(layer, TinyConv) else None
    )
    try:
        module.meta_loss(episode)
        expected = len(calls)
        calls.clear()
        module.training_step(episode, 0)
    finally:
        handle.remove()
    assert len(calls) == expected
