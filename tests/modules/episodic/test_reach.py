"""No gradient is 0 in silence: what autograd does not see is refused in one line, and what it may see another time is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from metalearn import ANIL, IMAML, MAML, Batch, ConfigError, Episode
from tests.networks import TinyConv, noise_episode


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.first(x).tanh()))

    def middle(self, z: Tensor) -> Tensor:
        return self.second(z).tanh()


class ReentrantFirst(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(checkpoint(self.first, x, use_reentrant=True).tanh()))


class ReentrantMiddle(Net):
    def middle(self, z: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(self.second, z, use_reentrant=True)
        return outputs


class ReentrantFunction(Net):
    def middle(self, z: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(lambda z: self.second(z).tanh(), z, use_reentrant=True)
        return outputs


class ReentrantSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint_sequential(self.body, 2, x, use_reentrant=True))


class ReentrantWords(nn.Module):
    """Whole numbers in, so that nothing goes into the checkpoint that could have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.words, x, use_reentrant=True).mean(1))


def words() -> Episode:
    episode = noise_episode(shape=(4,), dtype=torch.float32)
    return Episode(*(Batch((role.x * 10).long() % 6, role.y) for role in episode))


def numbers() -> Episode:
    return noise_episode(shape=(4,), dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's, without gradients
@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize(
    ("build", "episode", "where"),
    [
        (ReentrantFirst, numbers, "layer 'first'"),
        (ReentrantMiddle, numbers, "layer 'second'"),
        (ReentrantFunction, numbers, "a part"),
        (ReentrantSequence, numbers, "a part"),
        (ReentrantWords, words, "a part"),
    ],
)
def test_reentrant_checkpointing_is_refused(
    build: Callable[[], nn.Module], episode: Callable[[], Episode], where: str, kind: type[MAML | ANIL]
) -> None:
    module, tasks = kind(build(), inner_steps=1), episode()
    with pytest.raises(ConfigError, match=f"checkpoints {where} with use_reentrant=True.*use_reentrant=False"):
        module.training_step(tasks, 0)
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        module.adapt(Batch(tasks.support.x[0], tasks.support.y[0]))


class Unused(Net):
    def middle(self, z: Tensor) -> Tensor:
        return z


class Detached(Net):
    def middle(self, z: Tensor) -> Tensor:
        return z * self.second(z).detach()


class WithoutGradient(Net):
    def middle(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.second(z)


class ByData(Net):
    def middle(self, z: Tensor) -> Tensor:
        return z * self.second.weight.data.sum() + self.second.bias.sum()


@pytest.mark.parametrize("kind", [MAML, IMAML])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            Unused,
            "second.weight adapts, but the backbone's outputs do not depend on it.*freeze it with requires_grad_.False.",
        ),
        (Detached, "second.weight adapts, and the backbone's outputs depend on it, but no gradient reaches it"),
        (WithoutGradient, "first.weight adapts, and the backbone's outputs depend on it, but no gradient reaches it"),
        (ByData, "second.weight adapts, and the backbone's outputs depend on it, but no gradient reaches it"),
    ],
)
def test_a_tensor_that_no_gradient_reaches_is_named(
    build: Callable[[], Net], message: str, kind: type[MAML | IMAML]
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(build(), inner_steps=1).training_step(numbers(), 0)


@pytest.mark.parametrize("build", [Unused, Detached])
def test_frozen_it_is_taken(build: Callable[[], Net]) -> None:
    net = build()
    net.second.requires_grad_(False)
    grads = MAML(net, inner_steps=1).meta_gradient(numbers())
    assert all(float(grad.norm()) > 0 for grad in grads.values())


def test_what_does_not_adapt_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ANIL(Unused(), inner_steps=1).training_step(numbers(), 0)
    assert "no gradient reaches second.weight, second.bias, which are trainable" in caplog.text


class Experts(nn.Module):
    """Each example goes to one of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.gate(x).softmax(-1).max(-1)
        outputs = x.new_zeros(len(x), 3)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            if len(rows):
                outputs = outputs.index_add(0, rows, expert(x[rows]) * share[rows, None])
        return outputs


class BySign(Net):
    def middle(self, z: Tensor) -> Tensor:
        return self.second(z).tanh() if float(z.detach().sum()) > 0 else z


class Dropping(Net):
    """Leaves a layer out at random."""

    def middle(self, z: Tensor) -> Tensor:
        return self.second(z).tanh() if not self.training or float(torch.rand(())) < 0.5 else z


class OnlyInTraining(Net):
    def middle(self, z: Tensor) -> Tensor:
        return self.second(z) if self.training else z


class AtZero(Net):
    """A gate that starts at 0, so that the gradients before it are 0, but there."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def middle(self, z: Tensor) -> Tensor:
        return z + self.gate * self.second(z)


def biased() -> nn.Module:
    """A bias before batch normalisation, whose gradient vanishes."""
    net = TinyConv()
    net.body[0] = nn.Conv2d(1, 4, 3, padding=1)
    return net


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("build", [Experts, BySign, Dropping, OnlyInTraining, AtZero, biased])
def test_what_gradients_reach_sometimes_is_taken(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    shape: Any = (1, 8, 8) if build is biased else (4,)
    module, episode = MAML(build(), inner_steps=1), noise_episode(shape=shape, dtype=torch.float32)
    module.training_step(episode, 0)
    module.adapt(Batch(episode.support.x[0], episode.support.y[0]))(episode.query.x[0])
