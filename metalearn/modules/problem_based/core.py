"""The training of a bilevel problem under a Trainer: each step's direction as the gradient of a surrogate."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from metalearn.bilevel.algorithms import Algorithm, BiO
from metalearn.bilevel.algorithms.base import State
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.trees import Tree
from metalearn.carried import KEY, class_path, read_entry
from metalearn.checks import MOST_STEPS, UNBOUNDED, check_whole
from metalearn.errors import ConfigError, ShapeError
from metalearn.modules.problem_based.outcome import costs_picture
from metalearn.modules.problem_based.runner import AlgorithmRunner
from metalearn.modules.problem_based.state import average_state, pack_state
from metalearn.modules.problem_based.step_loader import StepLoader
from metalearn.modules.problem_based.trainer_checks import check_trainer_fits
from metalearn.modules.training.checkpoint import check_state
from metalearn.modules.training.eager import say_if_compiled
from metalearn.modules.training.module import OwnModule
from metalearn.modules.training.outer import check_outer
from metalearn.modules.training.precision import say_if_slow
from metalearn.modules.training.resuming import check_progress
from metalearn.reports.facts import list_oracle_calls
from metalearn.reports.outcome import Facts, Picture, RunRecord, Stage

__all__ = ["BilevelCore"]


class BilevelCore(OwnModule):
    """The training of a bilevel problem, which may be known only once the data are.

    Attributes:
        runner: takes the algorithm's steps; set by :meth:`begin`, as is ``outer``.
        outer: the leaves of ``x``.
    """

    runner: AlgorithmRunner
    outer: nn.ParameterList

    def __init__(self, seed: int, steps_per_epoch: int, outer_optimizer: OptimizerCallable | None) -> None:
        super().__init__()
        check_whole("steps_per_epoch", steps_per_epoch, 1, MOST_STEPS)
        check_whole("seed", seed, most=UNBOUNDED, remedy="use 0")
        if outer_optimizer is not None:
            check_outer(outer_optimizer, None)
        self.seed, self.steps_per_epoch, self.outer_optimizer = seed, steps_per_epoch, outer_optimizer
        self.run_config: str | None = None
        self.run_name = type(self).__name__

    def begin(self, problem: BilevelProblem, algorithm: Algorithm, x: Tree, y: Tree | None = None) -> None:
        """Say what is solved and how, and make parameters of ``x``."""
        runner = AlgorithmRunner(problem, algorithm, x, y, self.seed)
        if runner.owns_step and self.outer_optimizer is not None:
            raise ConfigError(
                f"outer_optimizer is given with {type(algorithm).__name__}, but that algorithm makes its own step of x; leave it "
                "out, or use BiO"
            )
        self.runner = runner
        self.outer = nn.ParameterList(nn.Parameter(leaf.detach().clone()) for leaf in tree_leaves(x))

    @property
    def is_built(self) -> bool:
        """Whether the problem and its parameters are there."""
        return hasattr(self, "runner")

    @property
    def problem(self) -> BilevelProblem:
        """What is solved."""
        return self.runner.problem

    @problem.setter
    def problem(self, problem: BilevelProblem) -> None:
        self.runner.problem = problem

    @property
    def algorithm(self) -> Algorithm:
        """How it is solved."""
        return self.runner.algorithm

    @algorithm.setter
    def algorithm(self, algorithm: Algorithm) -> None:
        self.runner.algorithm = algorithm

    @property
    def owns_step(self) -> bool:
        """Whether the algorithm makes its own step of ``x``."""
        return self.runner.owns_step

    @property
    def x(self) -> Tree:
        """The outer variables, without a graph."""
        return self.runner.as_tree(self.outer)

    @property
    def state(self) -> State:
        """The algorithm's state at the parameters' ``x``, as :func:`~metalearn.bilevel.run` takes it."""
        return self.runner.state_at(self.x, self._rank, self.device)

    @property
    def counts(self) -> OracleCounts:
        """Oracle calls so far, over all ranks."""
        return self.runner.counts if self.is_built else OracleCounts()

    @property
    def y(self) -> Tree:
        """Where the inner solver has ended."""
        return self.state["y"]

    def solution(self) -> Tree:
        """Return the ``x`` that the algorithm stands for, such as ``z`` of ``AccBiO``."""
        return self.algorithm.solution(self.state)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self._trainer is not None else 0

    @property
    def _ranks(self) -> int:
        return self.trainer.world_size if self._trainer is not None else 1

    def problem_of(self, batch: Any) -> BilevelProblem:
        """Return the problem of a step: with the batch's data, where it has no stream of its own.

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
        """Return the surrogate of the module's docstring.

        Raises:
            BilevelError: an assumption of the estimator does not hold.
            DivergenceError: something is not finite: which term, and at which step.
        """
        problem, before = self.problem_of(batch), self.state
        direction, after = self.runner.step(problem, before)
        if self._ranks > 1:
            after = average_state(after, problem, self._average_over_ranks)
        self.runner.keep(after)
        self._count_calls(before, after)
        self._log_step(after)
        return torch.stack([(p * d.detach()).sum() for p, d in zip(self.outer, direction, strict=True)]).sum()

    def _average_over_ranks(self, value: Tensor) -> Tensor:
        mean: Tensor = self.trainer.strategy.reduce(value.clone(), reduce_op="mean")
        return mean

    def _count_calls(self, before: State, after: State) -> None:
        """Add the calls of a step, summed over ranks."""
        spent = [after["counts"][name] - before["counts"][name] for name in after["counts"]]
        values = torch.tensor(spent, device=self.device)
        if self._trainer is not None:
            values = self.trainer.strategy.reduce(values, reduce_op="sum")
        self.runner.counts += OracleCounts(**dict(zip(after["counts"], values.tolist(), strict=True)))

    def _log_step(self, after: State) -> None:
        if self._trainer is None:
            return
        self.log("train/loss", after["loss"], prog_bar=True, batch_size=1, sync_dist=True)
        self.log("train/hypergradient_norm", after["norm"], batch_size=1, sync_dist=True)
        for name in ("inner_residual", "dual_residual", "certificate"):
            if after[name] is not None:
                self.log(f"train/{name}", after[name].max(), batch_size=1, sync_dist=True)
        for name, value in self.counts.as_dict().items():
            self.log(f"oracles/{name}", float(value), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make SGD that takes the algorithm's own step, or the user's optimiser."""
        if self.outer_optimizer is not None:
            optimizer = self.outer_optimizer(self.parameters())
            assert isinstance(optimizer, torch.optim.Optimizer)
            return optimizer
        size = self.algorithm.step_size if isinstance(self.algorithm, BiO) else 1.0
        return torch.optim.SGD(self.outer.parameters(), lr=size)

    def setup(self, stage: str) -> None:
        """Refuse what would change the algorithm's step, or is not proven right."""
        check_trainer_fits(self.trainer, self.runner)
        say_if_slow(self.trainer)
        say_if_compiled(self.trainer)
        names = type(self.algorithm).__name__, type(self.algorithm.estimator).__name__
        rank_zero_info(f"{type(self).__name__}: {names[0]} over {names[1]}")

    def train_dataloader(self) -> Any:
        """Return the numbers of an epoch's steps, for a problem with a stream or without data."""
        return StepLoader(self.steps_per_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state in plain types and tensors; called on all ranks."""
        gather = None
        if self._ranks > 1 and self.runner.has_separate_problems:
            gather = self.trainer.strategy.all_gather
        checkpoint[KEY] = {
            "class_path": class_path(type(self)),
            "algorithm": type(self.algorithm).__name__,
            "config": self.run_config,
            "run": self.run_name,
            "bilevel": {
                "state": pack_state(self.state, gather), "counts": self.counts.as_dict(), "ranks": self._ranks,
            },
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state up again; the weights are checked before any of them is loaded."""
        check_state(self, checkpoint["state_dict"])
        check_progress(self, checkpoint)
        packed = read_entry(checkpoint).bilevel
        if packed is not None:
            self.runner.restore(packed, self.x, self._rank, self.device)

    def check_checkpoint(self, checkpoint: dict[str, Any], trainer: L.Trainer, trains: bool) -> None:
        """Raise before anything is written if a run cannot go on from a checkpoint."""
        if self.is_built:  # else the problem comes from the data, and is checked with them
            super().check_checkpoint(checkpoint, trainer, trains)

    def summary_facts(self, stage: Stage) -> Facts:
        """Return what training has cost; see :class:`~metalearn.reports.outcome.ReportsOutcome`."""
        return list_oracle_calls(self.counts) if stage == "fit" else []

    def pictures(self, run: RunRecord) -> list[Picture]:
        """Return the losses against the oracle calls."""
        return costs_picture(run)
