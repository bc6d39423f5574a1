"""Recorded inner steps of networks and losses of many kinds, against the same modules without a recording."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML, Conv4, Episode, LSTMClassifier, ResNet12, TransformerClassifier
from tests.modules.episodic.test_recorded import same
from tests.modules.episodic.test_recorded_steps import shrink
from tests.networks import noise_episode


def tokens(tasks: int, seed: int) -> Episode:
    """Short sequences, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    episode = noise_episode(tasks, shape=(5,), seed=seed)
    roles = []
    for role in episode:
        x = torch.randint(1, 20, role.x.shape, generator=generator)
        lengths = torch.randint(2, 6, x.shape[:2], generator=generator)
        roles.append(role._replace(x=x * (torch.arange(5) < lengths[..., None])))
    return Episode(*roles)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Episode]]] = {
    "Conv4": (lambda: Conv4(3, 3, 4, 16), lambda tasks, seed: noise_episode(tasks, shape=(3, 16, 16), seed=seed)),
    "grey": (lambda: Conv4(3, 1, 4, 28), lambda tasks, seed: noise_episode(tasks, shape=(1, 28, 28), seed=seed)),
    "ResNet-12": (
        lambda: ResNet12(3, 3, [2, 3, 4, 5]),
        lambda tasks, seed: noise_episode(tasks, shape=(3, 16, 16), seed=seed),
    ),
    "LSTM": (lambda: LSTMClassifier(3, 20, 4, 4), tokens),
    "transformer": (lambda: TransformerClassifier(3, 20, 8, layers=1, heads=2), tokens),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3)),
        lambda tasks, seed: noise_episode(tasks, seed=seed),
    ),
    "attention of torch": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(64, 3)),
        lambda tasks, seed: noise_episode(tasks, shape=(8, 8), seed=seed),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ELU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(36, 3),
        ),
        lambda tasks, seed: noise_episode(tasks, seed=seed),
    ),
    "in place": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        lambda tasks, seed: noise_episode(tasks, seed=seed),
    ),
    "spectral": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 8)), nn.Tanh(), nn.Linear(8, 3)
        ).eval(),
        lambda tasks, seed: noise_episode(tasks, seed=seed),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "execution", "memory"),
    [
        *((name, "auto", "store") for name in NETWORKS),
        *((name, "sequential", memory) for name in ("Conv4", "transformer") for memory in ("store", "remat")),
        *((name, "auto", "remat") for name in ("Conv4", "transformer", "LSTM")),
    ],
)
def test_networks(name: str, execution: Any, memory: Any, replayed: list[int]) -> None:
    torch.manual_seed(0)
    make, draw = NETWORKS[name]
    options = {"execution": execution, "memory": memory, "compile": "steps"}
    module = MAML(make(), inner_steps=2, inner_lr=0.1, **options).double()
    for seed in range(2):
        same(module, draw(3, seed))
        shrink(module)
    assert len(replayed) >= 3


LOSSES: dict[str, Any] = {
    "mse": F.mse_loss,
    "by name": "huber",
    "module": nn.SmoothL1Loss(beta=0.5),
    "uncertain": "gaussian_nll",
    "of Python": lambda outputs, targets: (outputs.sigmoid() - targets).pow(4).mean() + outputs.logsumexp(1).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, replayed: list[int]) -> None:
    outputs = 2 if name == "uncertain" else 1
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs)).double()
    modules = [
        MAML(copy.deepcopy(net), inner_steps=2, inner_lr=0.05, loss=LOSSES[name], task="regression", compile=compile)
        for compile in (False, "steps")
    ]
    for seed in range(3):
        episode = noise_episode(3, shape=(3,), seed=seed)
        episode = Episode(*(role._replace(y=role.x[..., :1].sin()) for role in episode))
        right, ours = (module.meta_gradient(episode) for module in modules)
        for key, value in right.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)
    assert len(replayed) > 2


class Sum(nn.Module):
    """Its two layers have the same gradient, which no step changes where the loss is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def test_gradients_that_are_equal_and_constant(replayed: list[int]) -> None:
    net = Sum().double()
    options: Any = {"inner_steps": 3, "inner_lr": 0.1, "task": "regression"}
    modules = [
        MAML(copy.deepcopy(net), **options, loss=lambda outputs, targets: (outputs * targets).mean(), compile=compile)
        for compile in (False, "steps")
    ]
    for seed in range(3):
        episode = noise_episode(2, shape=(3,), seed=seed)
        episode = Episode(*(role._replace(y=role.x[..., :1].sin()) for role in episode))
        right, ours = (module.meta_gradient(episode) for module in modules)
        for key, value in right.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)
    assert len(replayed) == 7


class NoisyOutputs(nn.Module):
    """Draws twice: what it adds to its outputs, and what it drops of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x[..., :1])
        return self.head(F.dropout(x, 0.5, self.training)) + noise


@pytest.mark.parametrize("memory", ["store", "remat"])
def test_draws_come_in_their_order_again(memory: Any, replayed: list[int]) -> None:
    episode = noise_episode(3, shape=(3,))
    episode = Episode(*(role._replace(y=role.x[..., :1].sin()) for role in episode))
    grads = []
    for compile in (False, "steps"):
        torch.manual_seed(0)
        options: Any = {"compile": compile, "memory": memory, "loss": "mse"}
        module = MAML(NoisyOutputs().double(), inner_steps=2, inner_lr=0.1, **options)
        module.meta_gradient(episode)
        torch.manual_seed(1)
        grads.append([module.meta_gradient(episode) for _ in range(3)])
    for right, ours in zip(*grads, strict=True):
        for key, value in right.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)
    assert len(replayed) > 6
