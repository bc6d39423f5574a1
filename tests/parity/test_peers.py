"""The same meta-gradients as learn2learn's and higher's, where these are installed: ``.ci/run`` installs them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import ANIL, MAML, Episode
from tests.modules.episodic.test_meta_gradient import largest_error
from tests.networks import TinyConv, noise_episode

LR = 0.3
# what these two libraries say of themselves on today's Python and torch, none of it about the gradients
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def learn2learn() -> Any:
    return pytest.importorskip("learn2learn", reason="learn2learn is not installed: .ci/build_learn2learn builds it")


@pytest.fixture
def higher() -> Any:
    return pytest.importorskip("higher", reason="higher is not installed: pip install 'metalearn-lightning[higher]'")


def named_grads(net: nn.Module) -> dict[str, Tensor]:
    return {f"backbone.{name}": value.grad for name, value in net.named_parameters() if value.grad is not None}


def ours(
    kind: type, net: nn.Module, episode: Episode, steps: int, first_order: bool, execution: str
) -> dict[str, Tensor]:
    module = kind(copy.deepcopy(net), inner_steps=steps, inner_lr=LR, first_order=first_order, execution=execution)
    return module.meta_gradient(episode)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
def test_maml_equals_learn2learn(learn2learn: Any, steps: int, first_order: bool, execution: str) -> None:
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    theirs = learn2learn.algorithms.MAML(copy.deepcopy(net), lr=LR, first_order=first_order)
    for task in range(3):
        learner = theirs.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(episode.support.x[task]), episode.support.y[task]))
        (F.cross_entropy(learner(episode.query.x[task]), episode.query.y[task]) / 3).backward()
    assert largest_error(ours(MAML, net, episode, steps, first_order, execution), named_grads(theirs.module)) < 1e-9


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
def test_anil_equals_learn2learn(learn2learn: Any, steps: int, first_order: bool, execution: str) -> None:
    """As in its examples, MAML over the head on the features of a shared body."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    own = copy.deepcopy(net)
    head = learn2learn.algorithms.MAML(own.head, lr=LR, first_order=first_order)
    for task in range(3):
        support, query = own.body(episode.support.x[task]), own.body(episode.query.x[task])
        learner = head.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(support), episode.support.y[task]))
        (F.cross_entropy(learner(query), episode.query.y[task]) / 3).backward()
    assert largest_error(ours(ANIL, net, episode, steps, first_order, execution), named_grads(own)) < 1e-9


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
def test_maml_equals_higher(higher: Any, steps: int, first_order: bool, execution: str) -> None:
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    own = copy.deepcopy(net)
    optimizer = torch.optim.SGD(own.parameters(), lr=LR)

    def constant(grads: list[Tensor]) -> list[Tensor]:
        return [grad.detach() if first_order else grad for grad in grads]

    for task in range(3):
        with higher.innerloop_ctx(own, optimizer, copy_initial_weights=False) as (functional, inner):
            for _ in range(steps):
                loss = F.cross_entropy(functional(episode.support.x[task]), episode.support.y[task])
                inner.step(loss, grad_callback=constant)
            (F.cross_entropy(functional(episode.query.x[task]), episode.query.y[task]) / 3).backward()
    assert largest_error(ours(MAML, net, episode, steps, first_order, execution), named_grads(own)) < 1e-9
