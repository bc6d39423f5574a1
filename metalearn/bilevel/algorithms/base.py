"""What an algorithm is: a pure step from state to state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.bilevel.certificates import sharpen
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.estimators.base import Estimate, Estimator
from metalearn.bilevel.hypergradients import certify_from_residuals
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.solvers.growth import GROWTH
from metalearn.bilevel.trees import Tree, all_finite
from metalearn.checks import check_flag, check_kind
from metalearn.errors import ConfigError, DivergenceError

__all__ = ["Algorithm", "State", "accumulate_growth", "check_below_smoothness", "describe_estimate", "take_step"]

State = dict[str, Any]
"""Plain types and tensors alone, so that ``torch.load(weights_only=True)`` reads it back: the trees ``x`` and ``y``, ``step``,
``seed``, ``counts``, the last hypergradient's ``loss``, ``norm``, ``certificate``, ``inner_residual``,
``dual_residual`` and ``growth`` (or ``None``), and what else the algorithm carries, as vectors."""


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """An outer loop over an estimator.

    Attributes:
        estimator: how the hypergradient is estimated.
        certify: whether the state's ``certificate`` is the bound of :func:`~metalearn.bilevel.certify`, instead of the
            one that costs nothing. It is within a factor of 3 of the hypergradient's error, up to rounding. The oracle
            calls that it takes are not counted, since the steps do without it. The problem must be deterministic.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import aid_bio, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> algorithm = aid_bio(made.constants)
        >>> state = algorithm.init(made.problem, torch.zeros(3, dtype=torch.float64))
        >>> for _ in range(3):
        ...     state = algorithm.step(made.problem, state)
        >>> state["step"], state["x"].shape
        (3, torch.Size([3]))
    """

    estimator: Estimator
    certify: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_kind(f"the estimator of {name}", self.estimator, Estimator, "use AID(...), ITD(...) or another one")
        check_flag("certify", self.certify, owner=name)

    def init(self, problem: BilevelProblem, x: Tree, y: Tree | None = None, seed: int = 0) -> State:
        """The state before the first step.

        Raises:
            ShapeError: trees that do not fit together.
            ConfigError: a step size outside the stable range.
        """
        of_x, of_y, y = problem.layouts(x, y)
        self.check(problem)
        vectors = of_x.ravel(x).detach().clone(), of_y.ravel(y).detach().clone()
        state: State = {
            "x": of_x.unravel(vectors[0]), "y": of_y.unravel(vectors[1]), "step": 0, "seed": seed,
            "counts": OracleCounts().as_dict(), "loss": None, "norm": None, "certificate": None,
            "inner_residual": None, "dual_residual": None, "growth": None,
        }  # fmt: skip
        return {**state, **self.extra(*vectors)}

    def step(self, problem: BilevelProblem, state: State) -> State:
        """The state after one outer step; the one that is passed in is left alone."""
        of_x, of_y, _ = problem.layouts(state["x"], state["y"])
        oracles = Oracles(problem, of_x, of_y, OracleCounts(**state["counts"]), state["seed"])
        vectors = {**state, "x": of_x.ravel(state["x"]), "y": of_y.ravel(state["y"])}
        changed = self.advance(oracles, vectors)
        if not all_finite(changed["x"], changed["y"]):
            # the u of MRBO and VRBO estimates the inner gradient
            terms = {"grad_y g": changed.get("u"), "y": changed["y"], "x": changed["x"]}
            for name, term in terms.items():
                if term is not None:
                    check_finite(term, name, state["step"])
        return {
            **state,
            **changed,
            "x": of_x.unravel(changed["x"]),
            "y": of_y.unravel(changed["y"]),
            "step": state["step"] + 1,
            "counts": oracles.counts.as_dict(),
        }

    def check(self, problem: BilevelProblem) -> None:
        """Raise a ConfigError if a step size is outside the stable range."""
        self.estimator.check(problem.constants)

    def extra(self, x: Tensor, y: Tensor) -> State:
        """What the state holds beside the common entries; the vectors may be kept."""
        return {}

    @abstractmethod
    def advance(self, oracles: Oracles, state: State) -> State:
        """The entries that a step changes, where ``x`` and ``y`` are vectors; among them ``x`` and ``y``."""

    def solution(self, state: State) -> Tree:
        """The ``x`` that the algorithm stands for."""
        return state["x"]


def describe_estimate(
    oracles: Oracles, x: Tensor, estimate: Estimate, direction: Tensor | None = None, *, certify: bool = False
) -> State:
    """Return the entries of the state that describe a hypergradient at ``x``.

    Args:
        oracles: of the problem.
        x: where the estimate was made.
        estimate: of the hypergradient.
        direction: that was made of it, whose length is kept; ``None`` for the hypergradient itself.
        certify: see :class:`Algorithm`.
    """
    if certify:
        uncounted = Oracles(oracles.problem, oracles.x, oracles.y, OracleCounts(), oracles.seed)
        certificate: Tensor | None = sharpen(uncounted, x, estimate.y, estimate.v, estimate.value).upper
    else:
        certificate = certify_from_residuals(oracles, x, estimate)
    return {
        "loss": estimate.losses.mean(),
        "norm": torch.linalg.vector_norm(estimate.value if direction is None else direction),
        "certificate": certificate,
        "inner_residual": estimate.inner_residual,
        "dual_residual": estimate.dual_residual,
    }


def accumulate_growth(state: State, growth: Tensor | None) -> Tensor | None:
    """Return by how much the inner gradient has grown in the inner runs since it last shrank.

    Each run starts where the last one ended, and within a run a step size a little too large shows too little.

    Raises:
        DivergenceError: a millionfold.
    """
    if growth is None:
        return None
    before = state.get("growth")
    total = growth if before is None else growth * before.clamp(min=1.0)
    if bool((total > GROWTH**2).any()):
        raise DivergenceError(
            f"|grad_y g| has grown by a factor of {float(total.max()):.3g} within the inner steps up to outer step "
            f"{state['step']}, but they must shrink it where inner_loss is strongly convex; lower the inner step size, or add "
            "regularisation"
        )
    return total


def take_step(x: Tensor, direction: Tensor, step_size: float) -> Tensor:
    """Return ``x - step_size direction``."""
    return x.sub(direction, alpha=step_size)


def check_below_smoothness(owner: str, name: str, value: float, problem: BilevelProblem) -> None:
    """Raise a ConfigError unless a step size on ``Phi`` is below 2 over its smoothness, where that is known."""
    known = problem.constants.L_phi
    if known is not None and value >= 2 / known:
        raise ConfigError(
            f"{owner}.{name} is {value:g}, but with L_phi = {known:g} it must be below {2 / known:g}, where the "
            f"outer loop starts to diverge; use {1 / known:g} (1/L_phi)"
        )
