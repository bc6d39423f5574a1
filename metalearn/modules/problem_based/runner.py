"""The outer steps of an algorithm, taken one at a time at parameters that an optimiser moves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metalearn.bilevel.algorithms import Algorithm, BiO
from metalearn.bilevel.algorithms.base import State
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.hypergradients import check_problem
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.trees import Tree
from metalearn.carried.classes import short
from metalearn.checks import quote_value
from metalearn.errors import CheckpointError, ConfigError
from metalearn.modules.problem_based.state import move_state, unpack_state

__all__ = ["AlgorithmRunner", "Step"]

RANKS = 1 << 32
"""Between the seeds of two ranks, so that no two runs share one by adding small numbers."""


class Step(NamedTuple):
    """What an outer step asks for.

    Attributes:
        direction: for each leaf of ``x``, what an optimiser subtracts a multiple of.
        state: the algorithm's, after the step.
    """

    direction: list[Tensor]
    state: State


class AlgorithmRunner:
    """A problem, an algorithm, its state between steps, and the oracle calls so far; ``x`` is the caller's.

    Attributes:
        problem: what is solved.
        algorithm: how.
        seed: the seed of every draw.
        counts: oracle calls so far, over all ranks.
    """

    def __init__(self, problem: BilevelProblem, algorithm: Algorithm, x: Tree, y: Tree | None, seed: int) -> None:
        """Check that all fits together.

        Args:
            problem: what is solved.
            algorithm: how.
            x: where to start, a tree of tensors.
            y: where the inner solver starts; ``None`` for ``init_inner(x)``.
            seed: the seed of every draw.

        Raises:
            ConfigError: this is no problem or algorithm, or a step size is outside the stable range.
            ShapeError: trees that do not fit together.
        """
        check_problem(problem)
        if not isinstance(algorithm, Algorithm):
            raise ConfigError(
                f"algorithm is {quote_value(algorithm)}, but it must be one such as BiO(estimator=..., step_size=...); make one "
                "of it"
            )
        problem.layouts(x, y)
        algorithm.check(problem)
        self.problem, self.algorithm, self.seed = problem, algorithm, seed
        self.counts = OracleCounts()
        self._spec = tree_flatten(x)[1]
        self._start = None if y is None else tree_map(lambda leaf: leaf.detach().clone(), y)
        self._state: State | None = None
        self._packed: dict[str, Any] | None = None

    @property
    def owns_step(self) -> bool:
        """Whether the algorithm makes its own step of ``x``."""
        return not isinstance(self.algorithm, BiO)

    @property
    def has_separate_problems(self) -> bool:
        """Whether ranks have problems of their own."""
        return self.problem.batched is not None

    def as_tree(self, leaves: Iterable[Tensor]) -> Tree:
        """Return ``x`` of its leaves, copied without a graph."""
        # copies, since states remember earlier x, and an optimiser writes in place
        return tree_unflatten([leaf.detach().clone() for leaf in leaves], self._spec)

    def state_at(self, x: Tree, rank: int, device: torch.device) -> State:
        """Return the state at an ``x``: the initial one, that of a checkpoint, or that after the last step.

        Raises:
            CheckpointError: what was restored belongs to another algorithm, problem or number of ranks.
        """
        if self._state is None:
            fresh = self._initial_state(x, rank, device)
            self._state = move_state(fresh if self._packed is None else self._unpack(fresh, rank), device)
        return {**self._state, "x": x}

    def keep(self, state: State) -> None:
        """Take the state after a step, but for its ``x``."""
        self._state = {name: value for name, value in state.items() if name != "x"}

    def restore(self, packed: dict[str, Any], x: Tree, rank: int, device: torch.device) -> None:
        """Go on from what a checkpoint holds.

        Raises:
            CheckpointError: it belongs to another algorithm, problem or number of ranks.
        """
        self._packed, self._state = packed, None
        self._unpack(self._initial_state(x, rank, device), rank)
        self.counts = OracleCounts(**packed["counts"])

    def step(self, problem: BilevelProblem, before: State) -> Step:
        """Take one outer step from a state.

        Args:
            problem: with the data of this step.
            before: the state.

        Raises:
            BilevelError: an assumption of the estimator does not hold.
            DivergenceError: something is not finite: which term, and at which step.
        """
        if isinstance(self.algorithm, BiO):
            return self._find_direction(self.algorithm, problem, before)
        after = self.algorithm.step(problem, before)
        pairs = zip(tree_flatten(before["x"])[0], tree_flatten(after["x"])[0], strict=True)
        return Step([old - new for old, new in pairs], after)

    def _find_direction(self, algorithm: BiO, problem: BilevelProblem, before: State) -> Step:
        """Return the hypergradient, along which any optimiser may step."""
        of_x, of_y, _ = problem.layouts(before["x"], before["y"])
        oracles = Oracles(problem, of_x, of_y, OracleCounts(**before["counts"]), before["seed"])
        vectors = {**before, "x": of_x.ravel(before["x"]), "y": of_y.ravel(before["y"])}
        value, changed = algorithm.direction(oracles, vectors)
        check_finite(value, "the hypergradient", before["step"])
        after = {
            **before,
            **changed,
            "y": of_y.unravel(changed["y"]),
            "step": before["step"] + 1,
            "counts": oracles.counts.as_dict(),
        }
        return Step(tree_flatten(of_x.unravel(value))[0], after)

    def _initial_state(self, x: Tree, rank: int, device: torch.device) -> State:
        start = None if self._start is None else tree_map(lambda leaf: leaf.to(device), self._start)
        return self.algorithm.init(self.problem, x, start, self.seed + rank * RANKS)

    def _unpack(self, fresh: State, rank: int) -> State:
        """Return the state of a checkpoint, on top of an initial one."""
        assert self._packed is not None
        ranks = self._packed.get("ranks")
        if type(ranks) is not int or ranks < 1:
            raise CheckpointError(
                f"the checkpoint's bilevel.ranks is {short(ranks)}, but some ranks wrote it; use another checkpoint"
            )
        share = rank if ranks > 1 and self.has_separate_problems else None
        return unpack_state(self._packed.get("state"), fresh, share) | {"seed": fresh["seed"]}
