"""The loop that runs an algorithm and writes down what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from metalearn.bilevel.algorithms.base import Algorithm, State
from metalearn.bilevel.estimators.base import Estimator
from metalearn.bilevel.hypergradients import check_problem
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.trees import Tree
from metalearn.checks import UNBOUNDED, check_function, check_kind, check_number, check_whole, quote_value
from metalearn.errors import ConfigError

__all__ = ["Record", "Run", "run"]


class Record(NamedTuple):
    """One outer step.

    Attributes:
        step: the number of the step, from 1.
        loss: the outer loss before the step, ``[]``.
        norm: the norm of the hypergradient.
        certificate: a bound on the error of the hypergradient, the largest over problems; ``None`` where it is not
            known.
        gc_f, gc_g, jvp, hvp: how often each oracle was called so far.
        seconds: how many seconds the run has taken so far.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import aid_bio, quadratic, run
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> solved = run(made.problem, aid_bio(made.constants), torch.zeros(3, dtype=torch.float64), 2)
        >>> [record.step for record in solved.history]
        [1, 2]
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
        state: the state after the last step, from which :func:`run` goes on.
        history: a record for each step that was logged.
        converged: whether the tolerance was reached; ``False`` without one.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import aid_bio, quadratic, run
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> algorithm = aid_bio(made.constants)
        >>> solved = run(made.problem, algorithm, torch.zeros(3, dtype=torch.float64), 2)
        >>> run(made.problem, algorithm, state=solved.state, steps=3).state["step"]
        5
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
        problem: the problem to solve.
        algorithm: the algorithm that solves it.
        x: where the outer variable starts.
        steps: how many outer steps to take.
        y: where the inner solver starts; ``None`` for ``init_inner(x)``.
        state: the state to go on from, instead of ``x`` and ``y``.
        seed: the seed of every draw.
        tolerance: the norm at which the run stops. It is that of the hypergradient; for a proximal algorithm, of the
            gradient mapping.
        every: how many steps lie between two records. The last step has one too.
        callback: is called with the state and the record of each logged step. The run stops where it returns true.

    Raises:
        ConfigError: neither ``x`` nor ``state``, a state of another algorithm, a number of steps below 0, or what is no
            problem or algorithm.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, BilevelProblem, BiO, GradientDescent, run
        >>> problem = BilevelProblem(
        ...     outer_loss=lambda x, y, batch: (y - 4).square().sum() / 2,
        ...     inner_loss=lambda x, y, batch: (y - x).square().sum() / 2,
        ...     init_inner=torch.zeros_like,
        ... )
        >>> inner = GradientDescent(step_size=1.0, steps=1)
        >>> algorithm = BiO(estimator=AID(inner=inner), step_size=0.5)
        >>> run(problem, algorithm, torch.zeros(1), steps=2).x  # halfway to 4 in each step
        tensor([3.])
    """
    _check_problem_and_algorithm(problem, algorithm)
    if (x is None) == (state is None):
        raise ConfigError("run(x=..., state=...) got both or neither, but exactly one must be given; drop one")
    _check_arguments(steps, every, seed, tolerance, callback)
    if state is None:
        state = algorithm.init(problem, x, y, seed)
    else:
        _check_state(problem, algorithm, state)
    history: list[Record] = []
    begun = time.perf_counter()
    converged = False
    steps, every = int(steps), int(every)
    for number in range(1, steps + 1):
        state = algorithm.step(problem, state)
        converged = tolerance is not None and float(state["norm"]) <= tolerance
        if number % every == 0 or number == steps or converged:
            history.append(_record(state, time.perf_counter() - begun))
            if callback is not None and callback(state, history[-1]):
                break
        if converged:
            break
    return Run(algorithm.solution(state), state, history, converged)


def _record(state: State, seconds: float) -> Record:
    certificate = state["certificate"]
    return Record(
        state["step"], float(state["loss"]), float(state["norm"]),
        None if certificate is None else float(certificate.max()), **state["counts"], seconds=seconds,
    )  # fmt: skip


def _check_problem_and_algorithm(problem: object, algorithm: object) -> None:
    check_problem(problem)
    if isinstance(algorithm, Estimator):
        raise ConfigError(
            f"algorithm is {quote_value(algorithm)}, an estimator, but it must be an algorithm, which moves x; use "
            f"BiO(estimator={type(algorithm).__name__}(...), step_size=...)"
        )
    check_kind("algorithm", algorithm, Algorithm, "use BiO(estimator=..., step_size=...)")


def _check_arguments(steps: int, every: int, seed: int, tolerance: float | None, callback: object) -> None:
    check_whole("steps", steps, 0, UNBOUNDED, "use 100", owner="run", loose=True)
    check_whole("every", every, 1, UNBOUNDED, "use 1", owner="run", loose=True)
    check_whole("seed", seed, None, UNBOUNDED, "use 0", owner="run", loose=True)
    if tolerance is not None:
        check_number("tolerance", tolerance, "use 1e-6, or None", least=0, finite=False, owner="run", loose=True)
    if callback is not None:
        check_function("callback", callback, "leave it out", "a function of a state and a record", owner="run")


def _check_state(problem: BilevelProblem, algorithm: Algorithm, state: object) -> None:
    """Raise a ConfigError unless this is a state of the algorithm."""
    if isinstance(state, Run):
        raise ConfigError("state is a Run, but it must be the state of one; use state=result.state")
    check_kind("state", state, dict, "use the state of an earlier run: state=result.state")
    assert isinstance(state, dict)
    if not {"x", "y"} <= state.keys():
        raise ConfigError("state has no x or no y, so it is none of an algorithm; use state=result.state")
    known = algorithm.init(problem, state["x"], state["y"])
    odd = (known.keys() ^ state.keys()) - {"growth"}  # which states of older versions have not
    if odd:
        raise ConfigError(
            f"state is of another algorithm than {type(algorithm).__name__}: {', '.join(sorted(odd))} is in one of them "
            "alone; go on with the algorithm of the run, or give x=state['x'] instead"
        )
