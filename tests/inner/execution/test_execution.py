"""How the tasks of a meta-batch are cut into parts, and that the parts add up."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import Conv4, Episode
from metalearn.inner import SGD, Adaptation, HeadLearner, Learner, Plan, Schedule, TaskNorm, meta_loss
from metalearn.inner.execution.choice import Choice
from metalearn.inner.execution.plan import CACHED_VALUES, QUERY_VALUES, make_plan
from metalearn.inner.solvers.gradient_steps import GradientMethod
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import TinyConv, noise_episode

STACKED = Choice("vectorized", "store", True, False, False, ["it was asked for"])
THREADED = STACKED._replace(threads=True)


def adaptation_of(net: nn.Module) -> Adaptation:
    return Adaptation(Learner(net, TaskNorm(net, "transductive")), F.cross_entropy, GradientMethod(SGD()))


def meta_gradient(adaptation: Adaptation, episode: Episode, plan: Plan) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, query outputs and gradients under the names of a module's parameters."""
    params = adaptation.outer()
    schedule = Schedule(2, [dict.fromkeys(params, 0.3)], 2)
    loss, logits = meta_loss(adaptation, params, [], episode, schedule, plan)
    grads = torch.autograd.grad(loss, list(params.values()))
    return loss.detach(), logits, {f"backbone.{name}": grad for name, grad in zip(params, grads, strict=True)}


@pytest.mark.parametrize(
    "plan",
    [
        Plan(), Plan(tasks=3), Plan(tasks=2), Plan(tasks=3, queries=1), Plan(tasks=3, queries=2),
        Plan(tasks=1, queries=2, workers=2),
    ],
    ids=str,
)  # fmt: skip
def test_parts_and_chunks_add_up(plan: Plan) -> None:
    """Three tasks; the last part, and the last chunk of query sets, may be smaller."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, first_order=False)
    loss, logits, grads = meta_gradient(adaptation_of(net), episode, plan)
    rows = F.cross_entropy(logits.flatten(0, 1), episode.query.y.flatten())
    assert float(loss) == pytest.approx(float(rows), rel=1e-12)
    assert largest_error(grads, expected) < 1e-9


def test_chunks_share_what_does_not_adapt() -> None:
    """The body's gradient comes from the features of every chunk."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, False, "head")
    learner = HeadLearner(net, TaskNorm(net, "transductive"), "head")
    adaptation = Adaptation(learner, F.cross_entropy, GradientMethod(SGD()))
    _, _, grads = meta_gradient(adaptation, episode, Plan(tasks=3, queries=2))
    assert largest_error(grads, expected) < 1e-9


def test_as_many_tasks_together_as_fill_the_caches() -> None:
    episode = noise_episode(tasks=16, shape=(1, 16, 16))
    adaptation = adaptation_of(Conv4(3, hidden=8, image_size=16))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        query = episode.query.x[0].numel()
        assert make_plan(STACKED, adaptation, episode, None) == Plan(16, QUERY_VALUES // query, 1)
        assert make_plan(THREADED, adaptation, episode, None) == Plan(8, QUERY_VALUES // query, 2)
        assert make_plan(THREADED, adaptation, episode, 3) == Plan(3, QUERY_VALUES // query, 2)
        assert make_plan(THREADED, adaptation, episode, 16) == Plan(
            16, QUERY_VALUES // query, 1
        )  # nothing left to share
        assert make_plan(STACKED, adaptation, episode, None, evaluating=True) == Plan(16, CACHED_VALUES // query, 1)
        large = noise_episode(tasks=16, shape=(1, 128, 128))
        support = large.support.x[0].numel()
        assert make_plan(STACKED, adaptation, large, None).tasks == CACHED_VALUES // support
        assert make_plan(STACKED, adaptation, large, None).queries == max(QUERY_VALUES // large.query.x[0].numel(), 1)
    finally:
        torch.set_num_threads(threads)


def test_what_has_no_convolutions_is_stacked_whole() -> None:
    episode, adaptation = noise_episode(tasks=16, shape=(3,)), adaptation_of(nn.Linear(3, 3))
    assert make_plan(THREADED, adaptation, episode, None) == Plan(16)
    assert make_plan(THREADED, adaptation, episode, 5) == Plan(5)
    assert make_plan(THREADED, adaptation, episode, 50) == Plan(16)


def test_a_compiled_step_for_a_cpu_is_that_of_one_task() -> None:
    episode, adaptation = noise_episode(), adaptation_of(TinyConv())
    assert make_plan(STACKED, adaptation, episode, None, compiled=True) == Plan()
    assert make_plan(STACKED, adaptation, episode, 2, compiled=True).tasks == 2
    assert make_plan(STACKED._replace(name="sequential"), adaptation, episode, 2) == Plan()
