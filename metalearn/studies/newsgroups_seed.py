"""One seed of the newsgroups study: the best single penalty of a grid, and penalties that are learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel import AID, CG, Algorithm, BilevelProblem, Nesterov, hypergradient, regularization_problem
from metalearn.bilevel.problems.regularization import feature_logits
from metalearn.datamodules import Examples, NewsgroupsDataModule

__all__ = ["Learned", "Point", "Searched", "Seed", "join_examples", "make_look"]

Point = dict[str, float]
Look = Callable[[Tensor], Point]
Advance = Callable[[], None]
"""Says that a unit of work is done."""


class Searched(NamedTuple):
    """What a grid of single penalties gives.

    Attributes:
        points: what is measured of each.
        seconds: of the process's own time, for all of them.
    """

    points: list[Point]
    seconds: float


class Learned(NamedTuple):
    """What an outer loop gives.

    Attributes:
        points: what is measured before it and after each step.
        x: the penalties' logarithms ``[features]`` with the best accuracy on held-out posts.
        step: after how many steps they were there.
    """

    points: list[Point]
    x: Tensor
    step: float


@dataclass(frozen=True)
class Seed:
    """One draw of the posts.

    Attributes:
        problem: on the training and the validation posts.
        refit: that whose inner loss has all posts, validation and held-out ones included.
        look: what is measured of a linear model.
        features: their number.
        solver: of the inner problem, from zero.
    """

    problem: BilevelProblem
    refit: BilevelProblem
    look: Look
    features: int
    solver: Nesterov

    @classmethod
    def draw(cls, data: NewsgroupsDataModule, seed: int, solver: Nesterov) -> Seed:
        """Cut the posts anew."""
        data.cut_again(seed)
        train, val, held = (data.part(name) for name in ("train", "val", "held"))
        classes = len(data.classes)
        return cls(
            problem=regularization_problem(train, val, classes=classes),
            refit=regularization_problem(join_examples(train, val, held), val, classes=classes),
            look=make_look(data.parts),
            features=len(data.words),
            solver=solver,
        )

    def constant(self, log_penalty: float) -> Tensor:
        """Return the same penalty for all features."""
        return torch.full((self.features,), float(log_penalty))

    def solve(self, problem: BilevelProblem, x: Tensor) -> Tensor:
        """Return the inner solver's ``W`` from zero."""
        estimator = AID(inner=self.solver, solver=CG(iterations=0))  # the hypergradient itself is not used
        weights: Tensor = hypergradient(problem, x, None, estimator).inner
        return weights

    def measure(self, x: Tensor) -> Point:
        """Return what is measured of the model that is fitted to penalties."""
        return self.look(self.solve(self.problem, x))

    def refit_accuracy(self, x: Tensor) -> float:
        """Return the test accuracy (%) of the model that is fitted to all posts with these penalties."""
        return self.look(self.solve(self.refit, x))["test_accuracy"]

    def search(self, grid: Sequence[float], advance: Advance) -> Searched:
        """Fit a model to each single penalty."""
        begun, points = time.process_time(), []
        for log_penalty in grid:
            points.append({"constant": log_penalty, **self.measure(self.constant(log_penalty))})
            advance()
        return Searched(points, time.process_time() - begun)

    def learn(self, algorithm: Algorithm, start: float, steps: int, advance: Advance) -> Learned:
        """Take outer steps from a single penalty, and keep the penalties that are best on the held-out posts."""
        x = self.constant(start)
        state = algorithm.init(self.problem, x, self.solve(self.problem, x))
        points = [{"step": 0.0, "calls": 0.0, "seconds": 0.0, **self.look(state["y"])}]
        chosen, best = x, points[0]
        for _ in range(steps):
            x, begun = state["x"], time.process_time()
            state = algorithm.step(self.problem, state)
            seconds = points[-1]["seconds"] + time.process_time() - begun
            calls = float(sum(state["counts"].values()))
            points.append({"step": float(state["step"]), "calls": calls, "seconds": seconds, **self.look(state["y"])})
            if points[-1]["held_accuracy"] > best["held_accuracy"]:
                chosen, best = x, points[-1]  # its y is that of the x before the step
            advance()
        return Learned(points, chosen, best["step"])


def join_examples(*parts: Examples) -> Examples:
    """Return all examples of the parts."""
    x = torch.cat([part.x.to_sparse_coo() for part in parts]).coalesce()
    labels = torch.cat([part.y for part in parts])
    return Examples(torch.arange(len(labels)), x, labels)


def make_look(parts: Mapping[str, Examples]) -> Look:
    """Return what measures accuracy (%) and loss on each part, and on ``all`` validation posts.

    These are those of the outer loss and the held-out ones.
    """
    share = len(parts["val"].y) / (len(parts["val"].y) + len(parts["held"].y))

    def look(weights: Tensor) -> dict[str, float]:
        values = {}
        with torch.no_grad():
            for name, part in parts.items():
                logits = feature_logits(weights, part.x)
                values[f"{name}_accuracy"] = 100 * float((logits.argmax(1) == part.y).float().mean())
                values[f"{name}_loss"] = float(F.cross_entropy(logits, part.y))
        for key in ("accuracy", "loss"):
            values[f"all_{key}"] = share * values[f"val_{key}"] + (1 - share) * values[f"held_{key}"]
        return values

    return look
