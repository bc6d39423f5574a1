"""What an algorithm is: a pure step from state to state, and the loop that runs it and writes down what it cost."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.bilevel.certificates import sharpen
from metalearn.bilevel.estimators.base import Estimate, Estimator
from metalearn.bilevel.hypergradients import check_problem, plain_certificate
from metalearn.bilevel.oracles import OracleCounts, Oracles, finite
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.solvers.inner import GROWTH
from metalearn.bilevel.trees import Tree, all_finite
from metalearn.checks import UNBOUNDED, check_function, check_kind, check_number, check_whole, quote_value
from metalearn.errors import ConfigError, DivergenceError

__all__ = ["Algorithm", "Record", "Run", "State", "run"]

State = dict[str, Any]
"""Plain types and tensors alone, so that ``torch.load(weights_only=True)`` reads it back: the trees ``x`` and ``y``, ``step``,
``seed``, ``counts``, the last hypergradient's ``loss``, ``norm``, ``certificate``, ``inner_residual``,
``dual_residual`` and ``growth`` (or ``None``), and what else the algorithm carries, as vectors."""


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """An outer loop over an estimator.

    Attributes:
        estimator: of the hypergradient.
        certify: whether the state's ``certificate`` is the bound of :func:`~metalearn.bilevel.certify`, within a factor of 3 of
            the hypergradient's error up to rounding, instead of the one that costs nothing. The oracle calls that it takes are
            not counted, since the steps do without it. The problem must be deterministic.
    """

    estimator: Estimator
    certify: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_kind(f"the estimator of {name}", self.estimator, Estimator, "use AID(...), ITD(...) or another one")

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
        given = {**state, "x": of_x.ravel(state["x"]), "y": of_y.ravel(state["y"])}
        changed = self.advance(oracles, given)
        if not all_finite(changed["x"], changed["y"]):
            # the u of MRBO and VRBO estimates the inner gradient
            terms = {"grad_y g": changed.get("u"), "y": changed["y"], "x": changed["x"]}
            for name, term in terms.items():
                if term is not None:
                    finite(term, name, state["step"])
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


def told(oracles: Oracles, x: Tensor, found: Estimate, value: Tensor | None = None, *, certify: bool = False) -> State:
    """The entries of the state that say what a hypergradient at ``x`` was, and the direction ``value`` that was made of it."""
    value = found.value if value is None else value
    if certify:
        apart = Oracles(oracles.problem, oracles.x, oracles.y, OracleCounts(), oracles.seed)
        certificate: Tensor | None = sharpen(apart, x, found.y, found.v, found.value).upper
    else:
        certificate = plain_certificate(oracles, x, found)
    return {
        "loss": found.losses.mean(),
        "norm": torch.linalg.vector_norm(value),
        "certificate": certificate,
        "inner_residual": found.inner_residual,
        "dual_residual": found.dual_residual,
    }


def grown(state: State, growth: Tensor | None) -> Tensor | None:
    """By how much the inner gradient has grown in the inner runs since it last shrank, where each starts at the last one's end:
    within a run a step size a little too large shows too little.

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


def stepped(x: Tensor, value: Tensor, step_size: float) -> Tensor:
    """``x - step_size G``."""
    return x.sub(value, alpha=step_size)


def check_below_smoothness(owner: str, name: str, value: float, problem: BilevelProblem) -> None:
    """Raise a ConfigError unless a step size on ``Phi`` is below 2 over its smoothness, where that is known."""
    known = problem.constants.L_phi
    if known is not None and value >= 2 / known:
        raise ConfigError(
            f"{owner}.{name} is {value:g}, but with L_phi = {known:g} it must be below {2 / known:g}, where the "
            f"outer loop starts to diverge; use {1 / known:g} (1/L_phi)"
        )


class Record(NamedTuple):
    """One outer step.

    Attributes:
        step: its number, from 1.
        loss: the outer loss before the step, ``[]``.
        norm: of the hypergradient.
        certificate: the error of the hypergradient is at most this, the largest over problems; ``None`` where it is not known.
        gc_f, gc_g, jvp, hvp: oracle calls so far.
        seconds: since the run began.
    """

    step: int
    loss: float
    norm: float
    certificate: float | None
    gc_f: int
    gc_g: int
    jvp: int
    hvp: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        x: the solution.
        state: the last one, to go on from.
        history: a record for each step that was logged.
        converged: whether the tolerance was reached; ``False`` without one.
    """

    x: Tree
    state: State
    history: list[Record] = field(default_factory=list)
    converged: bool = False


def run(
    problem: BilevelProblem,
    algorithm: Algorithm,
    x: Tree | None = None,
    steps: int = 100,
    *,
    y: Tree | None = None,
    state: State | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    every: int = 1,
    callback: Callable[[State, Record], bool | None] | None = None,
) -> Run:
    """Take outer steps.

    Args:
        problem: what is solved.
        algorithm: how.
        x: where to start.
        steps: how many more to take.
        y: where the inner solver starts; ``None`` for ``init_inner(x)``.
        state: to go on from, instead of ``x`` and ``y``.
        seed: of every draw.
        tolerance: stop once the hypergradient (of a proximal algorithm, the gradient mapping) is at most so long, in norm.
        every: log each so many steps, and the last.
        callback: gets the state and the record of a logged step; returns true to stop.

    Raises:
        ConfigError: neither ``x`` nor ``state``, a state of another algorithm, a number of steps below 0, or what is no
            problem or algorithm.
    """
    check_problem(problem)
    if isinstance(algorithm, Estimator):
        raise ConfigError(
            f"algorithm is {quote_value(algorithm)}, an estimator, but it must be an algorithm, which moves x; use "
            f"BiO(estimator={type(algorithm).__name__}(...), step_size=...)"
        )
    check_kind("algorithm", algorithm, Algorithm, "use BiO(estimator=..., step_size=...)")
    if (x is None) == (state is None):
        raise ConfigError("run(x=..., state=...) got both or neither, but exactly one must be given; drop one")
    check_whole("steps", steps, 0, UNBOUNDED, "use 100", owner="run", loose=True)
    check_whole("every", every, 1, UNBOUNDED, "use 1", owner="run", loose=True)
    check_whole("seed", seed, None, UNBOUNDED, "use 0", owner="run", loose=True)
    if tolerance is not None:
        check_number("tolerance", tolerance, "use 1e-6, or None", least=0, finite=False, owner="run", loose=True)
    if callback is not None:
        check_function("callback", callback, "leave it out", "a function of a state and a record", owner="run")
    if state is None:
        state = algorithm.init(problem, x, y, seed)
    else:
        if isinstance(state, Run):
            raise ConfigError("state is a Run, but it must be the state of one; use state=result.state")
        check_kind("state", state, dict, "use the state of an earlier run: state=result.state")
        if not {"x", "y"} <= state.keys():
            raise ConfigError("state has no x or no y, so it is none of an algorithm; use state=result.state")
        known = algorithm.init(problem, state["x"], state["y"])
        odd = (known.keys() ^ state.keys()) - {"growth"}  # which states of older versions have not
        if odd:
            raise ConfigError(
                f"state is of another algorithm than {type(algorithm).__name__}: {', '.join(sorted(odd))} is in one of them "
                "alone; go on with the algorithm of the run, or give x=state['x'] instead"
            )
    history: list[Record] = []
    begun = time.perf_counter()
    converged = False
    steps, every = int(steps), int(every)
    for number in range(1, steps + 1):
        state = algorithm.step(problem, state)
        converged = tolerance is not None and float(state["norm"]) <= tolerance
        if number % every == 0 or number == steps or converged:
            certificate = state["certificate"]
            record = Record(
                state["step"], float(state["loss"]), float(state["norm"]),
                None if certificate is None else float(certificate.max()), **state["counts"],
                seconds=time.perf_counter() - begun,
            )  # fmt: skip
            history.append(record)
            if callback is not None and callback(state, record):
                break
        if converged:
            break
    return Run(algorithm.solution(state), state, history, converged)
