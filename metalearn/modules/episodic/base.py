"""The module that every episodic algorithm is: parts with one job each, held by one LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from metalearn.bilevel.counts import OracleCounts
from metalearn.carried import KEY
from metalearn.docstrings import complete_docstring
from metalearn.episode import Batch, Episode
from metalearn.inner import Learner, MetaLoss, StepStatistics, TaskNorm
from metalearn.inner.backbones import check_backbone
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.losses import get_loss
from metalearn.inner.network.copying import deepcopy_state
from metalearn.inner.solvers import TaskSolver
from metalearn.modules.episodic.adapting import TaskAdapter
from metalearn.modules.episodic.cost_log import CostLog
from metalearn.modules.episodic.divergence import DivergenceWatch
from metalearn.modules.episodic.evaluation import Evaluator, Outcome
from metalearn.modules.episodic.facts import ModuleFacts
from metalearn.modules.episodic.gradient_steps import make_gradient_steps
from metalearn.modules.episodic.joining import join_inherited, save_options, take_joined
from metalearn.modules.episodic.outer_loop import OuterLoop, list_trained, register_parts
from metalearn.modules.episodic.reading import TaskReader
from metalearn.modules.episodic.runner import InnerRunner
from metalearn.modules.episodic.saving import check_loss_is_given, describe_module, read_images, restore_module
from metalearn.modules.episodic.scores import Metrics, read_metrics
from metalearn.modules.episodic.trainer_support import check_run
from metalearn.modules.episodic.trainers import is_run, may_log
from metalearn.modules.episodic.training import TrainingStep
from metalearn.modules.training.checkpoint import describe_backbone
from metalearn.modules.training.module import OwnModule
from metalearn.modules.training.outer import Scheduler, adam, check_outer, name_default
from metalearn.shipping import AdaptedModel

__all__ = ["MakeLearner", "MakeSolver", "MetaModule"]

MakeLearner = Callable[[nn.Module, TaskNorm], Learner]
MakeSolver = Callable[[InnerLoop, Learner], TaskSolver]


class MetaModule(ModuleFacts, OwnModule):
    """A LightningModule whose training step adapts to each task of an :class:`~metalearn.episode.Episode`.

    An algorithm says which parameters adapt (``learner``), and how a task is solved (``solver``). The example is BOIL (Oh et al.
    2021). A subclass may make parts before or after ``super().__init__``, and override any step or hook of Lightning's.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Its batch normalisation is that of one task, as ``norm`` says.
        options: what the inner loop is asked to do.
        learner: makes the strategy that says which parameters adapt.
        solver: makes what solves the inner problem of a task, and owns what is learned for that.
        outer_optimizer: makes the outer optimiser from the parameters.
        outer_scheduler: makes its schedule over outer steps; ``"cosine"`` ends at 0.
        metrics: torchmetrics on the query sets of all tasks: one, a list, or a mapping by name. They are logged as
            ``val/<name>`` and ``test/<name>``.
        loss_order: how often training differentiates the loss; ``None`` for as often as the meta-gradient does.

    Attributes:
        backbone: the network.
        solver: what solves the inner problem of a task.
        learning_rate: takes the place of the outer optimiser's, where a LearningRateFinder has set it.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> from metalearn import MLP, MetaModule
        >>> from metalearn.inner import InnerLoop, Learner
        >>> class BodyLearner(Learner):
        ...     def adapts(self, name):
        ...         return not name.startswith("head.")
        >>> class BOIL(MetaModule):
        ...     def __init__(self, backbone, inner_steps=5, inner_lr=0.4):
        ...         super().__init__(backbone, InnerLoop.of(locals()), learner=BodyLearner)
        >>> BOIL(MLP(), inner_steps=3).inner_steps
        3
    """

    options_class: ClassVar[type[InnerLoop]] = InnerLoop
    """The options that the algorithm takes. A subclass without a constructor takes those that its base lacks, too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        join_inherited(cls)
        super().__init_subclass__(**kwargs)
        complete_docstring(cls, cls.options_class.help_texts())

    def __init__(
        self,
        backbone: nn.Module,
        options: InnerLoop,
        *,
        learner: MakeLearner = Learner,
        solver: MakeSolver = make_gradient_steps,
        outer_optimizer: OptimizerCallable = adam,
        outer_scheduler: Scheduler = None,
        metrics: Metrics = None,
        loss_order: int | None = None,
    ) -> None:
        super().__init__()
        options = take_joined(self, options)
        check_backbone(backbone)
        check_outer(outer_optimizer, outer_scheduler)
        statistics = StepStatistics(backbone, options.inner_steps) if options.norm == "per_step" else None
        strategy = learner(backbone, TaskNorm(backbone, options.norm, statistics))
        task_solver = solver(options, strategy)
        loss = get_loss(options.loss, backbone)
        register_parts(self, backbone, statistics, options.loss, task_solver, strategy.adapter)
        self._runner = InnerRunner(type(self).__name__, options, strategy, loss, task_solver)
        self._reader = TaskReader(self._runner, loss_order)
        self._evaluator = Evaluator(self._runner, self._reader, read_metrics(metrics))
        self._adapter = TaskAdapter(self._runner, self._reader)
        self._outer = OuterLoop()
        self._training = TrainingStep(self._runner, self._reader)
        self._divergence = DivergenceWatch()
        self._costs = None if task_solver.costs() is None else CostLog()
        save_options(self, options)
        self.backbone_description = describe_backbone(backbone)
        self.image_spec: dict[str, Any] | None = None
        self.image_statistics: dict[str, list[float]] | None = None
        self.run_config: str | None = None
        self.run_name = type(self).__name__
        self.outer_optimizer = name_default(outer_optimizer)
        self.outer_scheduler = outer_scheduler
        self.learning_rate: float | None = None

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """The mean query loss after adaptation, with its graph, and the query logits ``[B, n, N]`` without one.

        Args:
            episode: ``B`` tasks.
            ways: how many of the network's outputs the tasks use; ``None`` for all.

        Raises:
            BilevelError: the inner problem of a task cannot be solved.
            ConfigError: the step is compiled, and ``ways`` is given.
            MemoryLimitError: not even one task at a time fits into memory.
        """
        result = self._runner.meta_loss(episode, ways, self.multi_step_weights(self.global_step))
        costs = self.solver.costs()
        if self._costs is not None and costs is not None:
            self._costs.add(self, costs, len(episode.support.x))
        return result

    def meta_gradient(self, episode: Episode) -> dict[str, Tensor]:
        """The exact gradient of the mean query loss over the ``B`` tasks.

        Returns:
            for each trainable parameter, under its name in ``named_parameters()``, a tensor of its shape.
        """
        episode, _ = self._reader.prepare(episode)
        outer = list_trained(self)
        with torch.enable_grad():
            loss = self.meta_loss(episode).loss
            grads = torch.autograd.grad(loss, list(outer.values()), materialize_grads=True) if outer else ()
        return {name: grad.detach() for name, grad in zip(outer, grads, strict=True)}

    def adapt(self, support: Batch, steps: int | None = None, ways: int | None = None) -> AdaptedModel:
        """Adapt to one task; works in any grad mode and changes nothing of the module.

        Args:
            support: ``x`` ``[n, ...]`` and ``y`` ``[n]`` (or ``[n, d]`` targets), without a task axis.
            steps: inner steps; ``None`` for ``eval_inner_steps``.
            ways: the classes of the task; ``None`` for as many as the network has outputs. With fewer, the first ``ways`` outputs
                are adapted and given; with more, every row of the head starts as the mean of the trained rows, see
                :func:`~metalearn.inner.widening.widen_head`.

        Returns:
            the adapted network, whose ``adapted(x)`` gives logits.

        Raises:
            ConfigError: ``ways`` is more than the network's outputs, and no linear head could be widened.
            ShapeError: shapes disagree, an entry is not finite, or a label is not one of the network's outputs, or of ``ways``.
        """
        return self._adapter.adapt(support, steps, ways, self.origin)

    def adapt_many(self, support: Batch, steps: int | None = None, ways: int | None = None) -> list[AdaptedModel]:
        """Adapt to ``B`` tasks in one pass, with the same results as ``B`` calls of :meth:`adapt`.

        Args:
            support: ``x`` ``[B, n, ...]`` and ``y`` ``[B, n]`` (or ``[B, n, d]`` targets).
            steps: as :meth:`adapt` takes it.
            ways: as :meth:`adapt` takes it, of every task.

        Returns:
            an adapted network for each task. They share the tensors that did not adapt.

        Raises:
            ConfigError: as for :meth:`adapt`.
            ShapeError: as for :meth:`adapt`.
        """
        return self._adapter.adapt_many(support, steps, ways, self.origin)

    def forward(self, support: Batch, query: Tensor) -> Tensor:
        """Logits ``[m, N]`` of one task's queries ``[m, ...]`` after adaptation to its support set."""
        return self.adapt(support)(query)

    def setup(self, stage: str) -> None:
        """Refuse what is not proven right, and say once how batch normalisation is done, and what speaks against a setting."""
        check_run(self.trainer, self.backbone, self._runner.learner.backbone)
        self.solver.follow(self._runner.learner.able())
        self._runner.tell_settings()

    def training_step(self, batch: Episode | list[Episode], batch_idx: int) -> Tensor:
        """The mean query loss over the ``B`` tasks after adaptation, with its graph to the outer parameters.

        Args:
            batch: ``B`` tasks of one shape; or a list of tasks of any shapes, each with a task axis of 1, which use the network's
                first ``N`` outputs, ``N`` the classes of their own support sets.
            batch_idx: unused.

        Raises:
            DivergenceError: the loss is not finite, or has exploded; on a GPU that of the step before.
        """
        step = self._training.take(batch, self.meta_loss, partial(self._divergence.may_wait, self))
        if self.training:
            self._training.write_buffers(step.episodes, self._trainer)
        values = step.reduce(self)
        self._divergence.watch(self, values["loss"], step.explain)
        if may_log(self):
            for name, value in values.items():
                self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=step.tasks)
        return step.loss

    def on_fit_start(self) -> None:
        self._outer.start()
        self._divergence.start()

    def configure_optimizers(self) -> Any:
        """The outer optimiser over all parameters that are trainable now, and its schedule per outer step."""
        self.solver.follow(self._runner.learner.able())
        return self._outer.configure(self)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let no gradient reach the weights that is not finite; ranks agree, since it is reduced by now."""
        self._divergence.check_gradient(self, optimizer)

    def on_train_epoch_end(self) -> None:
        self._divergence.read(self)

    def on_validation_epoch_start(self) -> None:
        self._divergence.read(self)
        self._evaluator.start("val")

    def validation_step(self, batch: Episode | list[Episode], batch_idx: int, dataloader_idx: int = 0) -> Outcome:
        """The mean query ``"loss"`` of the batch, and its ``"acc"`` where targets are class labels."""
        return self._evaluator.score(self, "val", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._evaluator.finish_validation(self)

    def on_validation_end(self) -> None:
        if is_run(self) and not self.trainer.sanity_checking and self.trainer.optimizers:
            self._outer.step_after_validation(self)

    def on_test_epoch_start(self) -> None:
        self._evaluator.start("test")

    def test_step(self, batch: Episode | list[Episode], batch_idx: int, dataloader_idx: int = 0) -> Outcome:
        """The mean query ``"loss"`` of the batch, and its ``"acc"``, as :meth:`validation_step` gives them."""
        return self._evaluator.score(self, "test", batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._evaluator.finish_test(self)

    def predict_step(
        self, batch: Episode | list[Episode], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor | list[Tensor]:
        """Class probabilities ``[B, n, N]`` of the queries, a list for a list of tasks; without class labels, the outputs."""
        predictions = self._evaluator.predict(self, batch, dataloader_idx)
        return predictions if isinstance(batch, list) and len(predictions) == len(batch) else predictions[0]

    def freeze(self) -> Any:
        """Freeze every parameter; what adapted before still does, since adapting needs no training."""
        self._runner.learner.moving()
        super().freeze()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy_state(self, self, memo)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network in plain types, so that the checkpoint alone rebuilds the module."""
        read_images(self)
        checkpoint[KEY] = describe_module(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights against this architecture before any of them is loaded."""
        check_loss_is_given(self._reader.named_loss, checkpoint)
        entry = restore_module(self, checkpoint)
        if self._costs is not None:
            self.counts = OracleCounts(**(entry.oracles or {}))
