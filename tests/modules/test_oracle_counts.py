"""Oracle counts of few-shot heads and of iMAML against what the network and the loss see of autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import IMAML, BilevelFewShot
from metalearn.bilevel import OracleCounts
from tests.networks import noise_episode
from tests.watched import Passes

TASKS, SUPPORT = 3, 6
"""What :func:`noise_episode` makes."""


class Head(nn.Module):
    """A linear head; what it gets for the support set is watched."""

    def __init__(self, passes: Passes, features: int, ways: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(ways, features))
        self.bias = nn.Parameter(torch.zeros(ways))
        self.passes = passes

    def forward(self, z: Tensor) -> Tensor:
        weight = self.weight
        if len(z) == SUPPORT:
            z, weight = self.passes.watch(z, "x"), self.passes.watch(weight, "y")
        return F.linear(z, weight, self.bias)


class Network(nn.Module):
    """A body and a watched head."""

    def __init__(self, passes: Passes, ways: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
        self.head = Head(passes, 6, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Loss(nn.Module):
    """Cross entropy; ``f`` and ``g`` differ by the number of examples."""

    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.passes.watch(F.cross_entropy(outputs, targets), "g" if len(outputs) == SUPPORT else "f")


def measure(module: Any, passes: Passes, at_once: int) -> tuple[OracleCounts, OracleCounts]:
    """The counts of a training step, and what was seen: each pass is of ``at_once`` tasks."""
    episode = noise_episode(TASKS)
    assert len(episode.support.x[0]) == SUPPORT != len(episode.query.x[0])
    module.training_step(episode, 0)  # and what is done once
    before = module.counts
    passes.through.clear()
    module.training_step(episode, 0)
    spent = {name: value - before.as_dict()[name] for name, value in module.counts.as_dict().items()}
    return OracleCounts(**spent), passes.counts(at_once)


SOLVERS = [("aid", "cg"), ("aid", "normal_cg"), ("aid", "fixed_point"), ("aid", "neumann"), ("itd", "cg")]


@pytest.mark.parametrize(("estimator", "solver"), SOLVERS)
@pytest.mark.parametrize(("execution", "at_once"), [("sequential", 1), ("vectorized", TASKS)])
def test_of_few_shot_heads(estimator: Any, solver: Any, execution: Any, at_once: int) -> None:
    passes = Passes()
    module = BilevelFewShot(
        Network(passes), inner_steps=4, inner_lr=0.3, l2=0.1, estimator=estimator, linear_solver=solver, linear_steps=3,
        execution=execution, loss=Loss(passes),
    ).double()  # fmt: skip
    counts, seen = measure(module, passes, at_once)
    assert counts == seen
    assert counts.gc_g == (5 if estimator == "aid" else 4) * TASKS


@pytest.mark.parametrize(("execution", "at_once"), [("sequential", 1), ("vectorized", TASKS)])
@pytest.mark.parametrize("solver", ["cg", "normal_cg", "auto"])
def test_of_imaml(solver: Any, execution: Any, at_once: int) -> None:
    """Its product with ``J``, which is ``-lam I``, needs no autograd, and counts as one."""
    passes = Passes()
    module = IMAML(
        Network(passes), inner_steps=4, inner_lr=0.1, lam=4.0, cg_steps=3, linear_solver=solver, execution=execution,
        loss=Loss(passes),
    ).double()  # fmt: skip
    counts, seen = measure(module, passes, at_once)
    assert counts.jvp == TASKS
    assert (counts.gc_f, counts.gc_g, counts.hvp) == (seen.gc_f, seen.gc_g, seen.hvp)
