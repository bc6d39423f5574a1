"""The core of every module: the inner loop over a network, the meta-gradient, and adaptation to one task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from metalearn.episode import Batch, Episode, check_batch
from metalearn.errors import ConfigError, MemoryLimitError
from metalearn.inner import (
    RULES,
    Adaptation,
    AdaptedModel,
    Learner,
    MemoryMode,
    MetaLoss,
    NormPolicy,
    Plan,
    Schedule,
    StepStatistics,
    TaskNorm,
    meta_loss,
    own_kernels,
)
from metalearn.inner.backbones import check_backbone
from metalearn.inner.execution.choice import Choice
from metalearn.inner.execution.choose import choose_execution
from metalearn.inner.execution.compiled import CompiledPart
from metalearn.inner.execution.independence import check_independence
from metalearn.inner.execution.plan import make_plan
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.inner_loop import ExecutionName, InnerLoop, check_steps
from metalearn.inner.losses import LossFunction, get_loss
from metalearn.inner.network.copying import deepcopy_state
from metalearn.inner.network.structure import Mode
from metalearn.inner.reach import check_reach
from metalearn.inner.rules import Params
from metalearn.inner.step_sizes import InnerLR, InnerStepSizes
from metalearn.inner.widening import check_widened, widen_head
from metalearn.metrics import Interval
from metalearn.modules.episodic.reading import TaskReader
from metalearn.modules.episodic.scores import Metrics, Scores, read_metrics
from metalearn.modules.episodic.update_rule import find_rule
from metalearn.modules.episodic.written_buffers import WrittenBuffers
from metalearn.modules.training.checkpoint import describe_backbone
from metalearn.modules.training.outer import adam, check_outer, name_default
from metalearn.modules.training.precision import say_if_slow

__all__ = ["InnerLR", "LossFunction", "MemoryMode", "MetaCore", "Scheduler"]

Scheduler = Literal["cosine"] | LRSchedulerCallable | None


class MetaCore(TaskReader):
    """Builds the inner loop over a network, and takes gradients through it; see :class:`MetaModule`."""

    def __init__(
        self,
        backbone: nn.Module,
        options: InnerLoop,
        outer_optimizer: OptimizerCallable = adam,
        outer_scheduler: Scheduler = None,
        metrics: Metrics = None,
    ) -> None:
        super().__init__()
        check_backbone(backbone)
        check_outer(outer_optimizer, outer_scheduler)
        rule = find_rule(options.inner_optimizer)
        if not isinstance(options.inner_optimizer, str):
            options = replace(options, inner_optimizer=rule)
        if not rule.batches and options.memory != "store":
            raise ConfigError(
                f"memory is {options.memory!r}, but {options.inner_optimizer} keeps its state in the graph of all steps; use "
                f"memory='store', or one of the optimisers {', '.join(RULES)}"
            )
        self.options = options
        self.backbone = backbone
        self.norm_statistics = StepStatistics(backbone, options.inner_steps) if options.norm == "per_step" else None
        self.expect(options.loss)
        self.inner_steps = options.inner_steps
        self.eval_inner_steps = options.steps_in_evaluation
        self.first_order = options.first_order
        self.execution: ExecutionName = options.execution
        self.outer_optimizer = name_default(outer_optimizer)
        self.outer_scheduler = outer_scheduler
        self.multi_step_loss = options.multi_step_loss
        self.tasks_at_once = options.tasks_at_once
        self.kernels = options.kernels
        if isinstance(options.loss, nn.Module):
            self.loss = options.loss  # moved, cast, trained and saved with the module
        learner = self.make_learner(backbone, TaskNorm(backbone, options.norm, self.norm_statistics))
        self._adaptation = self.make_adaptation(
            Adaptation(
                learner, rule, get_loss(options.loss, backbone), options.memory, float(options.inner_weight_decay),
                options.inner_clip_norm, options.support_chunk,
            )
        )  # fmt: skip
        self.step_sizes = InnerStepSizes(
            options.inner_lr, options.inner_steps, options.initial_inner_lr, self._learner.able()
        )
        self.save_hyperparameters(options.hyper_parameters())
        self.backbone_description = describe_backbone(self.backbone)
        self.image_spec: dict[str, Any] | None = None
        self.image_statistics: dict[str, list[float]] | None = None
        self.run_config: str | None = None
        self.run_name = type(self).__name__
        self._user_metrics = read_metrics(metrics)
        self._scores: dict[tuple[str, int], Scores] = {}
        self._choices: dict[Any, Choice] = {}
        self._choice: Choice | None = None
        self._told: set[str] = set()
        self._written = WrittenBuffers()
        self._compiled = CompiledPart(rank_zero_info) if options.compile else None
        self.learning_rate: float | None = None
        """Takes the place of the outer optimiser's, where a LearningRateFinder has set it."""
        self._first_loss: float | None = None
        self._end: float | None = None
        self._results: dict[tuple[int, str, int], Interval] = {}

    @property
    def norm(self) -> NormPolicy:
        """The policy of batch normalisation, as the learner has it."""
        return self._learner.norm

    def make_adaptation(self, adaptation: Adaptation) -> Adaptation:
        """The inner loop; an algorithm whose inner problem is solved otherwise replaces it."""
        return adaptation

    def probed_adaptation(self) -> Adaptation:
        """What stands for the inner loop where noise shows which ways of running it are exact."""
        return self._adaptation

    def make_learner(self, backbone: nn.Module, norm: TaskNorm) -> Learner:
        """The strategy that says which parameters of ``backbone`` adapt."""
        raise NotImplementedError(f"{type(self).__name__} must say which parameters adapt")

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """The mean query loss after adaptation, with its graph, and the query logits ``[B, n, N]`` without one.

        Args:
            episode: ``B`` tasks.
            ways: how many of the network's outputs the tasks use; ``None`` for all.

        Raises:
            ConfigError: the step is compiled, and ``ways`` is given.
            MemoryLimitError: it does not fit into memory.
        """
        if not torch.is_grad_enabled():  # a value is wanted, as in a validation of the user's own
            with evaluation_gradients():
                episode = Episode(*(Batch(usable(role.x), usable(role.y)) for role in episode))
                loss, logits = self.meta_loss(episode, ways)
            return MetaLoss(loss.detach(), logits)
        if ways is not None and self._compiled is not None:
            raise ConfigError(
                "compile is True, but the tasks of this batch differ in shape, and each shape would be compiled anew; use "
                "compile=False, or fixed ways, shots and queries"
            )
        schedule = Schedule(
            self.inner_steps, self._sizes(), 1 if self.first_order else 2, self.multi_step_weights(self.global_step)
        )
        with self._running(episode, ways) as (adaptation, plan, _):
            try:
                return meta_loss(adaptation, adaptation.outer(), self._extra(), episode, schedule, plan, self._compiled)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not isinstance(error, torch.OutOfMemoryError) and not any(
                    sign in str(error) for sign in ("not enough memory", "allocate memory")
                ):
                    raise
                raise MemoryLimitError(_advise(adaptation.memory, plan, len(episode.support.x))) from error

    def multi_step_weights(self, step: int) -> list[float] | None:
        """The weights of the query losses after 0, 1, ..., ``inner_steps`` inner steps at an outer step.

        With ``multi_step_loss`` they go linearly from ``1 / inner_steps`` for each of ``1..inner_steps`` to 1 for the last
        alone, over that number of outer steps (Antoniou et al. 2019, section 4, there by epochs). ``None`` without.
        """
        if self.multi_step_loss is None or step >= self.multi_step_loss:
            return None
        left = 1.0 - step / self.multi_step_loss
        each = left / self.inner_steps
        return [0.0, *(each for _ in range(self.inner_steps - 1)), each + 1.0 - left]

    def _sizes(self) -> list[dict[str, Tensor | float]]:
        return self.step_sizes(self._learner.moving())

    def _extra(self) -> list[Tensor]:
        """Outer parameters besides the network's."""
        return [value for value in self.step_sizes.parameters() if value.requires_grad]

    @contextlib.contextmanager
    def _running(
        self, episode: Episode, ways: int | None = None, evaluating: bool = False
    ) -> Iterator[tuple[Adaptation, Plan, Choice]]:
        """The inner loop in the chosen way, how many tasks at once, and the choice; within the context it can be run."""
        mode: Mode = "evaluating" if evaluating else "as_it_is"
        params = {name: usable(value) for name, value in self._learner.outer().items()}
        learner = self._specialise(params, episode.support.x[0], mode)
        choice = self._choose(episode, learner, list(params), evaluating)
        learner = learner.as_given() if choice.as_given else learner
        with contextlib.ExitStack() as stack:
            running = stack.enter_context(learner.running(mode))
            stack.enter_context(own_kernels(*choice.operators))
            if evaluating:
                stack.enter_context(self._loss_in_eval())
            adaptation = replace(self._narrowed(ways), learner=running, memory=choice.memory)
            plan = make_plan(choice, adaptation, episode, self.tasks_at_once, self._compiled is not None)
            yield adaptation, plan, choice

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy_state(self, self, memo)

    def freeze(self) -> Any:
        """Freeze every parameter; what adapted before still does, since adapting needs no training."""
        self._learner.moving()
        super().freeze()
        return self

    def _specialise(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        """The learner in its cheapest exact form for the network as it is now, tried on examples ``[n, ...]`` of a task."""
        learner = self._learner.specialised(params, x, mode)
        if learner.note is not None and learner.note not in self._told:
            self._told.add(learner.note)
            rank_zero_info(f"{type(self).__name__}: {learner.note}")
        return learner

    def _narrowed(self, ways: int | None) -> Adaptation:
        """The inner loop of tasks that use the first ``ways`` outputs."""
        if ways is None:
            return self._adaptation
        return replace(self._adaptation, ways=ways)

    def meta_gradient(self, episode: Episode) -> dict[str, Tensor]:
        """The exact gradient of the mean query loss over the ``B`` tasks.

        Returns:
            for each trainable parameter, under its name in ``named_parameters()``, a tensor of its shape.
        """
        episode, _ = self._prepare(episode)
        outer = {name: value for name, value in self.named_parameters() if value.requires_grad}
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
            the adapted network: ``adapted(x)`` gives logits.

        Raises:
            ConfigError: ``ways`` is more than the network's outputs, and it has no linear head that could be widened.
            ShapeError: shapes disagree, an entry is not finite, or a label is not one of the network's outputs, or of ``ways``.
        """
        support = check_batch(support, "support")
        if steps is not None and steps != 0:
            check_steps("steps", steps)
        batched = Batch(support.x[None], support.y[None])
        episode, reading = self._prepare(Episode(batched, batched), ways)
        support = Batch(*(tensor[0] for tensor in episode.support))
        with evaluation_gradients():
            x, y = usable(support.x), usable(support.y)
            widens = ways is not None and ways > reading.outputs
            known = (
                y.clamp(max=reading.outputs - 1) if widens else y
            )  # labels that the network has before it is widened
            episode = Episode(Batch(x[None], known[None]), Batch(x[None], known[None]))
            params = {name: usable(value).detach() for name, value in self._learner.outer().items()}
            sizes = self._fixed_sizes()
            fixed = {name: value for name, value in self.backbone.named_parameters() if name not in params}
            if widens and ways is not None:
                params, sizes = widen_head(self._learner, reading.outputs, ways, params, sizes)
            count = self.eval_inner_steps if steps is None else steps
            with self._running(episode, ways, evaluating=True) as (adaptation, _, choice):
                with torch.no_grad():
                    encoded, _ = adaptation.encode(params, x, x)
                    if widens and ways is not None:
                        check_widened(adaptation.learner, params, encoded, ways)
                *_, adapted = adaptation.iterates(params, encoded, y, count, sizes, order=0)
            tensors = {**fixed, **params, **adapted}
            return AdaptedModel(adaptation.learner, tensors, x, count, ways, reading.classes, choice.operators)

    def forward(self, support: Batch, query: Tensor) -> Tensor:
        """Logits ``[m, N]`` of one task's queries ``[m, ...]`` after adaptation to its support set."""
        return self.adapt(support)(query)

    @property
    def choice(self) -> Choice | None:
        """How training runs the inner loop, and why; ``None`` before its first step."""
        return self._choice

    def _choose(self, episode: Episode, learner: Learner, outer: list[str], evaluating: bool) -> Choice:
        """The way of running, chosen once for training and once for evaluation, and anew when the network's layers change."""
        structure = learner.structure
        structure.refresh()
        key = structure.version, evaluating, type(learner), tuple(outer)
        if key not in self._choices:
            check_backbone(self.backbone)
            self._choices = {other: choice for other, choice in self._choices.items() if other[0] == structure.version}
            order = 0 if evaluating else 1 if self.first_order else 2
            schedule = Schedule(self.inner_steps, self._fixed_sizes(), order)
            adaptation = replace(self.probed_adaptation(), learner=learner)
            with evaluation_gradients():
                sets = [usable(x) for role in (episode.support.x, episode.query.x) for x in role[:2]]
                mode: Mode = "evaluating" if evaluating else "as_it_is"
                missed = check_reach(self._learner, sets, mode)
                if self.norm == "support":
                    check_independence(learner, usable(episode.support.x[0]), usable(episode.query.x[0]), mode)
            if missed:
                rank_zero_info(
                    f"{type(self).__name__}: no gradient reaches {', '.join(missed[:6])}, which are trainable"
                )
            with evaluation_gradients():
                choice = choose_execution(self.execution, adaptation, episode, schedule, self.kernels, evaluating)
            if not any(choice.is_like(other) for other in self._choices.values()):  # that of training has told it, say
                for line in choice.describe():
                    rank_zero_info(f"{type(self).__name__}: {line}")
            self._choices[key] = choice
        if not evaluating:
            self._choice = self._choices[key]
        return self._choices[key]

    def setup(self, stage: str) -> None:
        """Refuse what is not proven right, and say once how batch normalisation is done."""
        precision = str(self.trainer.precision)
        if precision.startswith("16"):
            raise ConfigError(
                f"precision is {precision}, but fp16 gradients of the inner loop underflow, since only the outer loss is "
                "scaled; use precision=bf16-mixed or 32-true"
            )
        say_if_slow(self.trainer)
        strategy = type(self.trainer.strategy).__name__
        if "FSDP" in strategy or "DeepSpeed" in strategy or "ModelParallel" in strategy:
            raise ConfigError(
                f"strategy is {strategy}, but the inner loop needs every parameter whole on each device; use strategy=ddp"
            )
        self.step_sizes.follow(self._learner.able())
        rank_zero_info(f"{type(self).__name__}: batch normalisation policy '{self.norm}'")

    def _fixed_sizes(self) -> list[dict[str, Tensor | float]]:
        sizes = self._sizes()
        return [{k: usable(v).detach() if isinstance(v, Tensor) else v for k, v in size.items()} for size in sizes]


def _advise(memory: MemoryMode, plan: Plan, tasks: int) -> str:
    """What to try next when memory runs out."""
    at_once = plan.tasks or 1
    line = f"the meta-gradient of {tasks} tasks ({at_once} at once, memory={memory!r}) does not fit into memory; use "
    if memory == "store":
        return line + "memory='remat', which keeps one inner step's activations instead of all"
    if at_once > 1:
        return line + f"tasks_at_once={max(at_once // 2, 1)}"
    return (
        line
        + f"fewer query examples per class, a smaller backbone, or support_chunk (memory={memory!r} is the leanest)"
    )
