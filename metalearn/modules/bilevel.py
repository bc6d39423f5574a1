"""A bilevel problem and an algorithm for it, as a LightningModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data import DataLoader

from metalearn.bilevel.algorithms import Algorithm, BiO
from metalearn.bilevel.algorithms.base import State
from metalearn.bilevel.hypergradients import check_problem
from metalearn.bilevel.oracles import OracleCounts, Oracles, check_finite
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.trees import Tree
from metalearn.carried import read_entry
from metalearn.carried.classes import short
from metalearn.checks import MOST_STEPS, check_whole, quote_value
from metalearn.errors import CheckpointError, ConfigError, ShapeError
from metalearn.modules.problem_based.outcome import costs_picture
from metalearn.modules.problem_based.state import average_state, move_state, pack_state, unpack_state
from metalearn.modules.training.checkpoint import KEY, check_state
from metalearn.modules.training.loading import load_module
from metalearn.modules.training.precision import say_if_slow
from metalearn.modules.training.resuming import check_before, check_progress
from metalearn.reports.facts import list_oracle_calls
from metalearn.reports.outcome import Facts, Picture, RunRecord, Stage

__all__ = ["BilevelModule"]

RANKS = 1 << 32
"""Between the seeds of two ranks, so that no two runs share one by adding small numbers."""


class _Step(NamedTuple):
    """What a step is: the surrogate's gradient for each leaf of ``x``, and the state after it."""

    direction: list[Tensor]
    state: State


class BilevelCore(L.LightningModule):
    """The training of a :class:`BilevelModule`, whose problem may be known only once the data are."""

    problem: BilevelProblem
    algorithm: Algorithm
    outer: nn.ParameterList

    def __init__(self, seed: int, steps_per_epoch: int, outer_optimizer: OptimizerCallable | None) -> None:
        super().__init__()
        check_whole("steps_per_epoch", steps_per_epoch, 1, MOST_STEPS)
        self.seed, self.steps_per_epoch, self.outer_optimizer = seed, steps_per_epoch, outer_optimizer
        self.run_config: str | None = None
        self.run_name = type(self).__name__
        self._start: Tree | None = None
        self._state: State | None = None
        self._packed: dict[str, Any] | None = None
        self._total = OracleCounts()

    def begin(self, problem: BilevelProblem, algorithm: Algorithm, x: Tree, y: Tree | None = None) -> None:
        """Say what is solved and how, and make parameters of ``x``."""
        check_problem(problem)
        if not isinstance(algorithm, Algorithm):
            raise ConfigError(
                f"algorithm is {quote_value(algorithm)}, but it must be one such as BiO(estimator=..., step_size=...); make one "
                "of it"
            )
        if not isinstance(algorithm, BiO) and self.outer_optimizer is not None:
            raise ConfigError(
                f"outer_optimizer is given with {type(algorithm).__name__}, but that algorithm makes its own step of x; leave it "
                "out, or use BiO"
            )
        self.problem, self.algorithm = problem, algorithm
        leaves, self._spec = tree_flatten(x)
        problem.layouts(x, y)
        algorithm.check(problem)
        self.outer = nn.ParameterList(nn.Parameter(leaf.detach().clone()) for leaf in leaves)
        self._start = None if y is None else tree_map(lambda leaf: leaf.detach().clone(), y)

    @property
    def owns_step(self) -> bool:
        """Whether the algorithm makes its own step of ``x``."""
        return not isinstance(self.algorithm, BiO)

    @property
    def x(self) -> Tree:
        """The outer variables, without a graph."""
        # copies, since states remember earlier x, and an optimiser writes in place
        return tree_unflatten([value.detach().clone() for value in self.outer], self._spec)

    @property
    def state(self) -> State:
        """The algorithm's state at the parameters' ``x``, as :func:`~metalearn.bilevel.run` takes it."""
        if self._state is None:
            fresh = self._initial()
            self._state = move_state(fresh if self._packed is None else self._unpack(fresh), self.device)
        return {**self._state, "x": self.x}

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self._trainer is not None else 0

    def _initial(self) -> State:
        start = None if self._start is None else tree_map(lambda leaf: leaf.to(self.device), self._start)
        return self.algorithm.init(self.problem, self.x, start, self.seed + self._rank * RANKS)

    def _unpack(self, fresh: State) -> State:
        """The state of a checkpoint, on top of an initial one."""
        assert self._packed is not None
        ranks = self._packed.get("ranks")
        if type(ranks) is not int or ranks < 1:
            raise CheckpointError(
                f"the checkpoint's bilevel.ranks is {short(ranks)}, but some ranks wrote it; use another checkpoint"
            )
        own = self._rank if ranks > 1 and self._separate else None
        return unpack_state(self._packed.get("state"), fresh, own) | {"seed": fresh["seed"]}

    @property
    def counts(self) -> OracleCounts:
        """Oracle calls so far, over all ranks."""
        return self._total

    @property
    def y(self) -> Tree:
        """Where the inner solver has ended."""
        return self.state["y"]

    def solution(self) -> Tree:
        """The ``x`` that the algorithm stands for, such as ``z`` of ``AccBiO``."""
        return self.algorithm.solution(self.state)

    def problem_of(self, batch: Any) -> BilevelProblem:
        """The problem of a step: with the batch's data, where it has no stream of its own.

        Raises:
            ShapeError: the batch is not a pair.
        """
        if self.problem.stream is not None or isinstance(batch, int):
            return self.problem
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ShapeError(
                f"the batch is a {type(batch).__name__}, but a problem without a stream needs a pair (outer, inner) of what "
                "its losses get; let the loader yield that, or give BilevelProblem(stream=...)"
            )
        return self.problem.with_batch(outer=batch[0], inner=batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The surrogate of the module's docstring.

        Raises:
            BilevelError: an assumption of the estimator does not hold.
            DivergenceError: something is not finite: which term, and at which step.
        """
        problem = self.problem_of(batch)
        before = self.state
        direction, after = self._step(problem, before)
        if self._trainer is not None and self.trainer.world_size > 1:
            after = average_state(after, problem, self._mean)
        self._state = {name: value for name, value in after.items() if name != "x"}
        self._tell(before, after)
        return torch.stack([(p * d.detach()).sum() for p, d in zip(self.outer, direction, strict=True)]).sum()

    def _step(self, problem: BilevelProblem, before: State) -> _Step:
        algorithm = self.algorithm
        if not isinstance(algorithm, BiO):
            after = algorithm.step(problem, before)
            pairs = zip(tree_flatten(before["x"])[0], tree_flatten(after["x"])[0], strict=True)
            return _Step([old - new for old, new in pairs], after)
        of_x, of_y, _ = problem.layouts(before["x"], before["y"])
        oracles = Oracles(problem, of_x, of_y, OracleCounts(**before["counts"]), before["seed"])
        given = {**before, "x": of_x.ravel(before["x"]), "y": of_y.ravel(before["y"])}
        value, changed = algorithm.direction(oracles, given)
        check_finite(value, "the hypergradient", before["step"])
        after = {
            **before, **changed, "y": of_y.unravel(changed["y"]), "step": before["step"] + 1,
            "counts": oracles.counts.as_dict(),
        }  # fmt: skip
        return _Step(tree_flatten(of_x.unravel(value))[0], after)

    def _mean(self, value: Tensor) -> Tensor:
        found: Tensor = self.trainer.strategy.reduce(value.clone(), reduce_op="mean")
        return found

    def _tell(self, before: State, after: State) -> None:
        spent = [after["counts"][name] - before["counts"][name] for name in after["counts"]]
        values = torch.tensor(spent, device=self.device)
        if self._trainer is not None:
            values = self.trainer.strategy.reduce(values, reduce_op="sum")
        self._total += OracleCounts(**dict(zip(after["counts"], values.tolist(), strict=True)))
        if self._trainer is None:
            return
        self.log("train/loss", after["loss"], prog_bar=True, batch_size=1, sync_dist=True)
        self.log("train/hypergradient_norm", after["norm"], batch_size=1, sync_dist=True)
        for name in ("inner_residual", "dual_residual", "certificate"):
            if after[name] is not None:
                self.log(f"train/{name}", after[name].max(), batch_size=1, sync_dist=True)
        for name, value in self._total.as_dict().items():
            self.log(f"oracles/{name}", float(value), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD that makes the algorithm's own step, or the user's optimiser."""
        if self.outer_optimizer is not None:
            found = self.outer_optimizer(self.parameters())
            assert isinstance(found, torch.optim.Optimizer)
            return found
        size = self.algorithm.step_size if isinstance(self.algorithm, BiO) else 1.0
        return torch.optim.SGD(self.outer.parameters(), lr=size)

    def setup(self, stage: str) -> None:
        """Refuse what would change the algorithm's step, or is not proven right."""
        trainer, name = self.trainer, type(self.algorithm).__name__
        if str(trainer.precision).startswith("16"):
            raise ConfigError(
                f"precision is {trainer.precision}, but fp16 gradients of the inner problem underflow, since only the "
                "surrogate is scaled; use precision=bf16-mixed or 32-true"
            )
        say_if_slow(trainer)
        if self.owns_step and trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"accumulate_grad_batches is {trainer.accumulate_grad_batches}, but {name} makes its own step of x in each "
                "batch; use 1, and larger batches"
            )
        if self.owns_step and trainer.gradient_clip_val is not None:
            raise ConfigError(
                f"gradient_clip_val is {trainer.gradient_clip_val}, but {name} makes its own step of x, which would be cut; "
                "leave it out, and lower the step size"
            )
        if trainer.world_size > 1 and not self.problem.shared_x:
            raise ConfigError(
                f"shared_x is False on {trainer.world_size} ranks, but they average one x; use one rank, or shared_x=True"
            )
        rank_zero_info(f"{type(self).__name__}: {name} over {type(self.algorithm.estimator).__name__}")

    def train_dataloader(self) -> Any:
        """The numbers of an epoch's steps, for a problem with a stream or without data."""
        return _StepLoader(_Numbers(self.steps_per_epoch), batch_size=None, generator=torch.Generator())

    @property
    def _separate(self) -> bool:
        """Whether ranks have problems of their own."""
        return self.problem.batched is not None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state in plain types and tensors; called on all ranks."""
        ranks = self.trainer.world_size if self._trainer is not None else 1
        gather = self.trainer.strategy.all_gather if ranks > 1 and self._separate else None
        checkpoint[KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "algorithm": type(self.algorithm).__name__,
            "config": self.run_config,
            "run": self.run_name,
            "bilevel": {
                "state": pack_state(self.state, gather), "counts": self._total.as_dict(), "ranks": ranks,
            },
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state up again; the weights are checked before any of them is loaded."""
        check_state(self, checkpoint["state_dict"])
        check_progress(self, checkpoint)
        found = read_entry(checkpoint).bilevel
        if found is not None:
            self._packed, self._state = found, None
            self._unpack(self._initial())
            self._total = OracleCounts(**found["counts"])

    def check_checkpoint(self, checkpoint: dict[str, Any], trainer: L.Trainer, trains: bool) -> None:
        """Raise before anything is written if a run cannot go on from a checkpoint."""
        if hasattr(self, "outer"):  # else the problem comes from the data, and is checked with them
            check_before(self, trainer, checkpoint, trains)

    def summary_facts(self, stage: Stage) -> Facts:
        """What training has cost; see :class:`~metalearn.reports.outcome.ReportsOutcome`."""
        return list_oracle_calls(self.counts) if stage == "fit" else []

    def pictures(self, run: RunRecord) -> list[Picture]:
        """The losses against the oracle calls."""
        return costs_picture(run)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Any:
        """Build the module that a checkpoint holds; see :meth:`MetaModule.load_from_checkpoint`.

        Raises:
            CheckpointError: the file cannot be read, or is of another problem.
        """
        return load_module(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, kwargs)


class BilevelModule(BilevelCore):
    """``min_x f(x, y*(x))`` by an algorithm of :mod:`metalearn.bilevel`, under any Trainer with automatic optimisation.

    ``x`` are the module's parameters. A step returns ``sum((p * d).sum())`` with a constant ``d`` for each parameter ``p``, so
    that backward, DDP and the optimiser see ``d`` as its gradient. For :class:`~metalearn.bilevel.BiO`, ``d`` is the
    hypergradient, and any optimiser moves ``x``: SGD with the algorithm's step size unless told otherwise. Algorithms that own
    their step (``AccBiO``, ``AccBiOBG``, ``MRBO``, ``VRBO``, ``ProximalBiO``) make ``d`` the change of ``x`` that they want, and
    SGD with ``lr=1`` makes it, up to the rounding of ``x - (x - x_new)``.

    Data come from the problem's stream (then ``trainer.fit(module)`` needs none), or, where it has none, from any loader of
    pairs ``(outer, inner)``. On several ranks each has its own batches; the mean of ``d`` moves ``x``, and ``y``, ``v`` and
    momentum are averaged after each step. Where each rank has its own tasks (``batched``), ``y`` and ``v`` stay with them.

    Logs ``train/loss`` (``f`` before the step), ``train/hypergradient_norm``, and where they are known the largest over problems
    of ``train/inner_residual``, ``train/dual_residual`` and ``train/certificate``; and ``oracles/gc_f``, ``gc_g``, ``jvp``,
    ``hvp``: the calls so far, over all ranks.

    Args:
        problem: what is solved.
        algorithm: how.
        x: where to start: a tensor, or a tree of them.
        y: where the inner solver starts; ``None`` for ``init_inner(x)``.
        seed: of every draw; rank 0 draws what ``run(..., seed=seed)`` does.
        steps_per_epoch: outer steps of an epoch, where the module brings its own loader.
        outer_optimizer: makes the optimiser of ``x``, for ``BiO``; ``None`` for SGD with the algorithm's step size.

    Raises:
        ConfigError: an optimiser for an algorithm that owns its step, or a setting of the Trainer that would change it.
        ShapeError: trees that do not fit together.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        algorithm: Algorithm,
        x: Tree,
        y: Tree | None = None,
        seed: int = 0,
        steps_per_epoch: int = 100,
        outer_optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__(seed, steps_per_epoch, outer_optimizer)
        self.begin(problem, algorithm, x, y)


class _StepLoader(DataLoader[int]):
    """A loader without a position of its own, since a step's batches depend on the state alone; Lightning asks for one."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Numbers(torch.utils.data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return number
