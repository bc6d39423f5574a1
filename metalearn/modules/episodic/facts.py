"""What a module says of itself: its options, how it runs, what a test has measured, and its pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, TypeVar, cast

from torch import Tensor, nn

from metalearn.bilevel.counts import OracleCounts
from metalearn.errors import ConfigError
from metalearn.inner import Adaptation, NormPolicy
from metalearn.inner.execution.choice import Choice
from metalearn.inner.inner_loop import ExecutionName, InnerLoop
from metalearn.inner.solvers import TaskSolver
from metalearn.inner.step_sizes import InnerStepSizes
from metalearn.intervals import Interval
from metalearn.modules.episodic.cost_log import CostLog
from metalearn.modules.episodic.evaluation import Evaluator
from metalearn.modules.episodic.measures import read_outputs
from metalearn.modules.episodic.multi_step import weigh_steps
from metalearn.modules.episodic.opened import OpenLoop, visit_loops
from metalearn.modules.episodic.option import Option
from metalearn.modules.episodic.outcome import list_facts, list_pictures
from metalearn.modules.episodic.reading import TaskReader
from metalearn.modules.episodic.records import QueryRecords
from metalearn.modules.episodic.rescaling import rescale_steps
from metalearn.modules.episodic.runner import InnerRunner
from metalearn.reports.outcome import Facts, Picture, RunRecord, Stage
from metalearn.shipping.description import Origin

__all__ = ["ModuleFacts"]

Result = TypeVar("Result")


class ModuleFacts:
    """The facts about a :class:`~metalearn.modules.MetaModule`, read from its parts; nothing is kept here."""

    backbone: nn.Module
    solver: TaskSolver
    adapter: nn.Module | None
    image_spec: dict[str, Any] | None
    image_statistics: dict[str, list[float]] | None
    backbone_description: dict[str, Any] | None
    _runner: InnerRunner
    _reader: TaskReader
    _evaluator: Evaluator
    _costs: CostLog | None

    tests_independently: bool = True
    """Whether a test also answers each query alone, as a deployed model does, where batch normalisation makes a difference."""

    inner_steps = Option[int]()
    eval_inner_steps = Option[int](read="steps_in_evaluation")
    first_order = Option[bool]()
    execution = Option[ExecutionName]()
    multi_step_loss = Option[int | None]()
    tasks_at_once = Option[int | None]()
    memory_limit = Option[float | None]()
    kernels = Option[bool]()

    @property
    def options(self) -> InnerLoop:
        """The options of the inner loop, as they are now."""
        return self._runner.options

    def set_options(self, **values: Any) -> None:
        """Set options of the inner loop, which are checked as the arguments of the same names are."""
        self._runner.options = replace(self._runner.options, **values)

    @property
    def norm(self) -> NormPolicy:
        """The name of the policy of batch normalisation."""
        return self._runner.learner.norm

    @property
    def origin(self) -> Origin:
        """What an adapted model keeps of this module."""
        return Origin(self._runner.name, self.backbone_description, self.image_spec, self.image_statistics)

    @property
    def adaptation(self) -> Adaptation:
        """The inner loop as a frozen function."""
        return self._runner.adaptation

    @property
    def choice(self) -> Choice | None:
        """How training runs the inner loop, and why; ``None`` before its first step."""
        return self._runner.chooser.of_training

    def visit_inner_loops(self, batch: Any, function: Callable[[OpenLoop], Result]) -> list[Result]:
        """Call a function with the opened inner loops of a batch of tasks, as they are run in the module's present mode.

        Raises:
            ConfigError: tasks are not adapted by gradient steps.
        """
        return visit_loops(self._runner, self._reader, batch, not self.backbone.training, function)

    @property
    def classifies(self) -> bool:
        """Whether the targets are class labels: known from the first batch on, before it what the loss suggests."""
        return self._reader.classifies

    @property
    def step_sizes(self) -> InnerStepSizes | None:
        """The inner step sizes, if the solver takes gradient steps."""
        return getattr(self.solver, "step_sizes", None)

    def rescale_steps(self, factor: float) -> None:
        """Multiply the inner step sizes, here and in the hyper-parameters that checkpoints keep.

        Args:
            factor: a finite number above 0.

        Raises:
            ConfigError: the solver has no step sizes, or the factor is out of range.
        """
        rescale_steps(cast(Any, self), self._runner, factor)

    @property
    def counts(self) -> OracleCounts | None:
        """Oracle calls so far over all tasks and ranks, of a module whose tasks are bilevel problems; ``None`` for others."""
        return None if self._costs is None else self._costs.counts

    @counts.setter
    def counts(self, value: OracleCounts | None) -> None:
        self._costs = None if value is None else CostLog(value)

    def to_onnx(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse Lightning's export: a module that adapts takes gradients in its forward, which no exported format holds."""
        self._refuse_export("to_onnx", "export('model.onnx')")

    def to_torchscript(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse Lightning's export, as :meth:`to_onnx`."""
        self._refuse_export("to_torchscript", "exported()")

    def _refuse_export(self, name: str, call: str) -> NoReturn:
        raise ConfigError(
            f"{type(self).__name__}.{name} was called, but a module that adapts takes gradients as it answers, which no exported "
            f"format holds; export what has adapted to a support set: module.adapt(support).{call}"
        )

    def multi_step_weights(self, step: int) -> list[float] | None:
        """The weights of the query losses after 0, 1, ... inner steps at an outer step; see :func:`weigh_steps`."""
        return weigh_steps(self.inner_steps, self.multi_step_loss, step)

    def test_results(self, dataloader_idx: int = 0) -> dict[tuple[str, int], Interval]:
        """The last test's mean and interval of ``"acc"`` and ``"loss"`` after each number of inner steps."""
        return self._evaluator.results(dataloader_idx)

    def test_table(self, dataloader_idx: int = 0) -> tuple[list[str], list[list[float]]]:
        """The last test's metrics: a header, and a row for every task of every rank in ascending order of task."""
        return self._evaluator.table(dataloader_idx)

    def read_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """What outputs ``[n, w]`` of targets that are no class labels say, by the names of columns; each ``[n, k]``.

        Values are ``"predicted"``, a band has ``"lower"`` and ``"upper"`` bounds, and labels have probabilities ``"p"``.
        """
        return read_outputs(self.adaptation.loss, outputs)

    def test_records(self, dataloader_idx: int = 0) -> QueryRecords:
        """What the queries of the last test were answered: counts of classes taken for others, of labels, and of confidences."""
        return self._evaluator.records(dataloader_idx)

    @property
    def checkpoint_monitor(self) -> tuple[str, str]:
        """The metric by which the best checkpoint is chosen, and its direction."""
        return ("val/acc", "max") if self.classifies else ("val/loss", "min")

    @property
    def log_keys(self) -> list[str] | None:
        """What is logged in training and validation; ``None`` for a subclass of a user's, which may log more."""
        if not type(self).__module__.startswith("metalearn."):
            return None
        kinds = ["loss", "acc"] if self.classifies else ["loss"]
        own = [f"{stage}/{kind}" for stage in ("val", "train") for kind in kinds]
        return [*own, *(f"val/{name}" for name in self._evaluator.metrics)]

    def summary_facts(self, stage: Stage) -> Facts:
        """What a test has measured, or what training has cost; see :class:`~metalearn.reports.outcome.ReportsOutcome`."""
        return list_facts(cast(Any, self), stage)

    def pictures(self, run: RunRecord) -> list[Picture]:
        """A task after adaptation, the metric after each inner step, and the training curve."""
        return list_pictures(cast(Any, self), run)
