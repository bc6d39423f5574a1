"""The steps that every meta-learning module shares: training, evaluation with gradients, adaptation, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from metalearn.episode import Batch, Episode, check_batch, check_episode, check_labels
from metalearn.errors import ConfigError, DivergenceError, ShapeError
from metalearn.inner import (
    Adaptation,
    AdaptedModel,
    Learner,
    MetaLoss,
    NormPolicy,
    Schedule,
    evaluate,
    evaluating,
    get_rule,
    last,
    own_batch_norm,
    sequential,
    vectorized,
)
from metalearn.metrics import EpisodeAccuracy, EpisodeMean, Interval
from metalearn.modules.arguments import LossName, check_backbone, check_choice, check_steps, get_loss
from metalearn.modules.checkpoint import KEY, build_backbone, check_state, describe_backbone, read_checkpoint
from metalearn.modules.execution import ExecutionName, choose_execution
from metalearn.modules.grad_mode import evaluation_gradients, usable
from metalearn.modules.step_sizes import InnerStepSizes

__all__ = ["InnerLR", "LossFunction", "MemoryMode", "MetaModule", "Scheduler"]

InnerLR = float | list[float] | Literal["learn"]
LossFunction = LossName | Callable[[Tensor, Tensor], Tensor]
MemoryMode = Literal["store"]
Scheduler = Literal["cosine"] | LRSchedulerCallable | None

EXPLOSION = 1e3
"""A meta-loss this many times the first one (or 1, if that is larger) has exploded."""


class MetaModule(L.LightningModule):
    """A LightningModule whose training step adapts to each task of an :class:`~metalearn.episode.Episode`.

    Subclasses say which parameters adapt by :meth:`make_learner`. See :class:`~metalearn.modules.MAML` for the arguments.
    """

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int,
        inner_lr: InnerLR,
        first_order: bool,
        eval_inner_steps: int | None,
        loss: LossFunction,
        inner_optimizer: str,
        execution: ExecutionName,
        memory: MemoryMode,
        norm: NormPolicy,
        initial_inner_lr: float,
        outer_optimizer: OptimizerCallable,
        outer_scheduler: Scheduler,
    ) -> None:
        super().__init__()
        check_backbone(backbone)
        check_steps("inner_steps", inner_steps)
        if eval_inner_steps is not None:
            check_steps("eval_inner_steps", eval_inner_steps)
        check_choice("execution", execution, ["auto", "sequential", "vectorized"])
        check_choice("memory", memory, ["store"])
        self.backbone = own_batch_norm(backbone, norm)
        self.norm: NormPolicy = norm
        self.inner_steps = inner_steps
        self.eval_inner_steps = eval_inner_steps or inner_steps
        self.first_order = first_order
        self.classifies = loss != "mse"
        self.execution: ExecutionName = execution
        self.outer_optimizer = outer_optimizer
        self.outer_scheduler = outer_scheduler
        self._adaptation = Adaptation(self.make_learner(self.backbone), get_rule(inner_optimizer), get_loss(loss))
        names = [name for name in self._learner.outer() if self._learner.adapts(name)]
        self.step_sizes = InnerStepSizes(inner_lr, inner_steps, initial_inner_lr, names)
        self.save_hyperparameters(
            {
                "inner_steps": inner_steps,
                "inner_lr": list(inner_lr) if isinstance(inner_lr, (list, tuple)) else inner_lr,
                "first_order": first_order,
                "eval_inner_steps": eval_inner_steps,
                "inner_optimizer": inner_optimizer,
                "execution": execution,
                "memory": memory,
                "norm": norm,
                "initial_inner_lr": initial_inner_lr,
            }
            | ({} if callable(loss) else {"loss": loss})
        )
        self.backbone_description = describe_backbone(self.backbone)
        self.image_spec: dict[str, Any] | None = None
        self.run_config: str | None = None
        self.run_name = type(self).__name__
        self.val_accuracy, self.val_loss = EpisodeAccuracy(), EpisodeMean()
        self.test_steps = nn.ModuleDict()
        self._chosen: Literal["sequential", "vectorized"] | None = None
        self._outputs: int | None = None
        self._first_loss: float | None = None
        self._end: float | None = None
        self._seen = 0
        self._results: dict[tuple[str, int], Interval] = {}

    def make_learner(self, backbone: nn.Module) -> Learner:
        """The strategy that says which parameters of ``backbone`` adapt."""
        raise NotImplementedError(f"{type(self).__name__} must say which parameters adapt")

    @property
    def _learner(self) -> Learner:
        return self._adaptation.learner

    # ------------------------------------------------------------------ gradients
    def meta_loss(self, episode: Episode) -> MetaLoss:
        """The mean query loss after adaptation, with its graph, and the query logits ``[B, n, N]`` without one."""
        schedule = Schedule(self.inner_steps, self.step_sizes(), 1 if self.first_order else 2)
        run = vectorized if self._choose(episode) == "vectorized" else sequential
        return run(self._adaptation, self._learner.outer(), self.step_sizes.parameters(), episode, schedule)

    def meta_gradient(self, episode: Episode) -> dict[str, Tensor]:
        """The exact gradient of the mean query loss over the ``B`` tasks.

        Returns:
            for each trainable parameter, under its name in ``named_parameters()``, a tensor of its shape.
        """
        self._check(episode)
        outer = {name: value for name, value in self.named_parameters() if value.requires_grad}
        with torch.enable_grad():
            loss = self.meta_loss(episode).loss
            grads = torch.autograd.grad(loss, list(outer.values()), materialize_grads=True)
        return dict(zip(outer, grads, strict=True))

    def adapt(self, support: Batch, steps: int | None = None) -> AdaptedModel:
        """Adapt to one task; works in any grad mode and changes nothing of the module.

        Args:
            support: ``x`` ``[n, ...]`` and ``y`` ``[n]`` (or ``[n, d]`` targets), without a task axis.
            steps: inner steps; ``None`` for ``eval_inner_steps``.

        Returns:
            the adapted network: ``adapted(x)`` gives logits.

        Raises:
            ShapeError: the shapes disagree, or a label is not one of the network's outputs.
        """
        support = Batch(*support)
        check_batch(support, "support")
        batched = Batch(support.x[None], support.y[None])
        self._check(Episode(batched, batched))
        with evaluation_gradients(), evaluating(self.backbone):
            x, y = usable(support.x), usable(support.y)
            params = {name: usable(value).detach() for name, value in self._learner.outer().items()}
            with torch.no_grad():
                encoded, _ = self._learner.encode(params, x, x)
            count = self.eval_inner_steps if steps is None else steps
            adapted = last(self._adaptation.iterates(params, encoded, y, count, self._fixed_sizes(), order=0))
        return AdaptedModel(self._learner, {**params, **adapted}, x)

    def count_outputs(self, x: Tensor) -> int:
        """The number of outputs ``N`` that the network gives for inputs ``x`` ``[n, ...]``."""
        return self._count_outputs(Batch(x[None], torch.zeros(1, len(x), dtype=torch.int64)))

    def forward(self, support: Batch, query: Tensor) -> Tensor:
        """Logits ``[m, N]`` of one task's queries ``[m, ...]`` after adaptation to its support set."""
        return self.adapt(support)(query)

    # ------------------------------------------------------------------ training
    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """The mean query loss over the ``B`` tasks after adaptation, with its graph to the outer parameters.

        Raises:
            DivergenceError: the loss is not finite, or has exploded.
        """
        episode = as_episode(batch)
        self._check(episode)
        loss, logits = self.meta_loss(episode)
        value = loss.detach()
        if self._trainer is not None:
            value = self.trainer.strategy.reduce(value.clone(), reduce_op="mean")
        self._check_divergence(float(value), "the meta-loss")
        if self._trainer is not None:
            self.log("train/loss", value, prog_bar=True, batch_size=len(logits))
            if self.classifies:
                right = (logits.argmax(-1) == episode.query.y).float().mean()
                self.log("train/acc", right, batch_size=len(logits))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before a gradient that is not finite reaches the weights; ranks agree, since it is reduced by now."""
        grads = [value.grad for value in self.parameters() if value.grad is not None]
        if grads:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            if not torch.isfinite(norm):
                self._diverged("the meta-gradient", float(norm))

    def on_fit_start(self) -> None:
        self._end = self._first_loss = None

    def configure_optimizers(self) -> Any:
        """The outer optimiser over all trainable parameters, and its schedule per outer step."""
        optimizer = self.outer_optimizer(value for value in self.parameters() if value.requires_grad)
        if self.outer_scheduler is None:
            return optimizer
        if self.outer_scheduler == "cosine":
            scheduler: Any = LambdaLR(optimizer, self._cosine)
        else:
            scheduler = self.outer_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _cosine(self, step: int) -> float:
        """The share of the learning rate at an outer step, annealed to 0 at the end of the run (Loshchilov and Hutter 2017).

        The end is asked for only once training runs: ``estimated_stepping_batches`` builds the training loader, and a loader
        that is built before the loops are restored never gets its position back.
        """
        if step == 0:
            return 1.0
        if self._end is None:
            self._end = self.trainer.estimated_stepping_batches
        if not math.isfinite(self._end):
            raise ConfigError(
                "outer_scheduler is 'cosine', but the run has no end to anneal to; set trainer.max_steps or max_epochs"
            )
        return 0.5 * (1.0 + math.cos(math.pi * min(step / self._end, 1.0)))

    # ------------------------------------------------------------------ evaluation
    def on_validation_epoch_start(self) -> None:
        self._seen = 0

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        episode, outputs, numbers = self._evaluate(batch, [self.eval_inner_steps])
        logits = outputs[self.eval_inner_steps]
        self.val_loss.update(self._losses(logits, episode), numbers)
        if self.classifies:
            self.val_accuracy.update(logits, episode.query.y, numbers)

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.val_loss.compute().mean, prog_bar=not self.classifies)
        self.val_loss.reset()
        if self.classifies:
            self.log("val/acc", self.val_accuracy.compute().mean, prog_bar=True)
            self.val_accuracy.reset()

    def on_test_epoch_start(self) -> None:
        self._seen = 0
        self._results.clear()
        for metric in self.test_steps.values():
            metric.reset()  # type: ignore[operator]

    def test_step(self, batch: Episode, batch_idx: int) -> None:
        episode, outputs, numbers = self._evaluate(batch, range(self.eval_inner_steps + 1))
        for step, logits in outputs.items():
            self._test_metric(f"loss_step_{step}", EpisodeMean).update(self._losses(logits, episode), numbers)
            if self.classifies:
                self._test_metric(f"acc_step_{step}", EpisodeAccuracy).update(logits, episode.query.y, numbers)

    def on_test_epoch_end(self) -> None:
        steps = range(self.eval_inner_steps + 1)
        for kind, metric in (("loss", EpisodeMean), ("acc", EpisodeAccuracy)):
            if kind == "acc" and not self.classifies:
                continue
            for step in steps:  # a rank without tasks has made no metric yet, and all ranks gather alike
                found = self._test_metric(f"{kind}_step_{step}", metric).compute()
                self._results[kind, step] = found
                self.log(f"test/{kind}_step_{step}", found.mean)
            self.log(f"test/{kind}", found.mean)
            self.log(f"test/{kind}_ci95", found.ci95)

    def test_results(self) -> dict[tuple[str, int], Interval]:
        """The last test's mean and interval of ``"acc"`` and ``"loss"`` after each number of inner steps."""
        return dict(self._results)

    def test_table(self) -> tuple[list[str], list[list[float]]]:
        """The last test's metrics: a header, and a row for every task of every rank in ascending order of task."""
        found = {name: metric.gathered for name, metric in self.test_steps.items()}
        columns = [value for value in found.values() if isinstance(value, tuple)]
        if not columns:
            return ["task"], []
        rows = zip(columns[0][0].tolist(), *(values.tolist() for _, values in columns), strict=True)
        return ["task", *found], [list(row) for row in rows]

    def predict_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Class probabilities ``[B, n, N]`` of the queries (the outputs themselves for regression)."""
        _, outputs, _ = self._evaluate(batch, [self.eval_inner_steps])
        logits = outputs[self.eval_inner_steps]
        return logits.float().softmax(-1) if self.classifies else logits

    def _test_metric(self, name: str, kind: type[EpisodeMean]) -> Any:
        if name not in self.test_steps:
            self.test_steps[name] = kind().to(self.device)
        return self.test_steps[name]

    def _evaluate(self, batch: Episode, steps: Iterable[int]) -> tuple[Episode, dict[int, Tensor], Tensor]:
        episode = as_episode(batch)
        self._check(episode)
        tasks = len(episode.support.x)
        with evaluation_gradients():
            episode = Episode(*(Batch(usable(role.x), usable(role.y)) for role in episode))
            adaptation = replace(self._adaptation, stacked=self._choose(episode) == "vectorized")
            params = {name: usable(value) for name, value in self._learner.outer().items()}
            with evaluating(self.backbone):
                outputs = evaluate(adaptation, params, episode, steps, self._fixed_sizes())
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self._trainer is not None else (1, 0)
        numbers = (torch.arange(self._seen, self._seen + tasks, device=self.device)) * world + rank
        self._seen += tasks
        for logits in outputs.values():
            finite = logits.isfinite().flatten(1).all(1)
            if not bool(finite.all()):
                task = int(numbers[~finite][0])
                raise DivergenceError(
                    f"the outputs of task {task} are not finite after adaptation, so no accuracy is reported; "
                    f"use a smaller inner_lr (it is {self.hparams.get('inner_lr')})"
                )
        return episode, outputs, numbers

    def _losses(self, logits: Tensor, episode: Episode) -> Tensor:
        pairs = zip(logits.float(), episode.query.y, strict=True)
        return torch.stack([self._adaptation.loss(outputs, targets) for outputs, targets in pairs])

    def _fixed_sizes(self) -> list[dict[str, Tensor | float]]:
        sizes = self.step_sizes()
        return [{k: usable(v).detach() if isinstance(v, Tensor) else v for k, v in size.items()} for size in sizes]

    # ------------------------------------------------------------------ checks
    def _check(self, episode: Episode) -> None:
        check_episode(episode)
        if self._outputs is None:
            self._outputs = self._count_outputs(episode.support)
        if self.classifies:
            for role, part in zip(("support", "query"), episode, strict=True):
                check_labels(part.y, self._outputs, role)

    def _count_outputs(self, support: Batch) -> int:
        x, y = support.x[0], support.y[0]
        with evaluation_gradients(), evaluating(self.backbone), torch.no_grad():
            params = {name: usable(value) for name, value in self._learner.outer().items()}
            try:
                x = usable(x)
                encoded, _ = self._learner.encode(params, x, x)
                outputs = self._learner.support_logits(params, encoded)
            except (RuntimeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ShapeError(
                    f"support: the backbone {type(self.backbone).__name__} cannot take x of shape {list(x.shape)} "
                    f"({reason}); build it for these inputs (in_channels, image_size, inputs)"
                ) from error
        expected = "[examples, ways]" if self.classifies else str(list(y.shape))
        if outputs.ndim != 2 if self.classifies else outputs.shape != y.shape:
            raise ShapeError(
                f"the backbone gives outputs of shape {list(outputs.shape)} for targets of shape {list(y.shape)}, but the "
                f"loss needs {expected}; change the backbone's number of outputs, or the loss"
            )
        return outputs.shape[-1]

    def _check_divergence(self, value: float, what: str) -> None:
        if self._first_loss is None and math.isfinite(value):
            self._first_loss = value
        if not math.isfinite(value) or value > EXPLOSION * max(self._first_loss or 0.0, 1.0):
            self._diverged(what, value)

    def _diverged(self, what: str, value: float) -> None:
        step = self.global_step if self._trainer is not None else 0
        raise DivergenceError(
            f"{what} is {value:.3g} at step {step}, so training has diverged and stops; use a smaller inner_lr (it is "
            f"{self.hparams.get('inner_lr')}), fewer inner_steps, or a smaller outer learning rate"
        )

    def _choose(self, episode: Episode) -> Literal["sequential", "vectorized"]:
        if self._chosen is None:
            sizes = self._fixed_sizes()
            schedule = Schedule(self.inner_steps, sizes, 1 if self.first_order else 2)
            with evaluation_gradients():
                choice = choose_execution(self.execution, self._adaptation, self.make_learner, episode, schedule)
            self._chosen = choice.name
            rank_zero_info(f"{type(self).__name__}: {choice.name} execution over tasks, because {choice.reason}")
        return self._chosen

    def setup(self, stage: str) -> None:
        """Refuse what is not proven right, and say once how batch normalisation is done."""
        precision = str(self.trainer.precision)
        if precision.startswith("16"):
            raise ConfigError(
                f"precision is {precision}, but fp16 gradients of the inner loop underflow, since only the outer loss is "
                "scaled; use precision=bf16-mixed or 32-true"
            )
        strategy = type(self.trainer.strategy).__name__
        if "FSDP" in strategy or "DeepSpeed" in strategy or "ModelParallel" in strategy:
            raise ConfigError(
                f"strategy is {strategy}, but the inner loop needs every parameter whole on each device; use strategy=ddp"
            )
        rank_zero_info(f"{type(self).__name__}: batch normalisation policy '{self.norm}'")

    # ------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network in plain types, so that the checkpoint alone rebuilds the module."""
        spec = getattr(getattr(self._trainer, "datamodule", None), "image_spec", None)
        if spec is not None:
            self.image_spec = spec.to_dict()
        checkpoint[KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "backbone": self.backbone_description,
            "image_spec": self.image_spec,
            "config": self.run_config,
            "run": self.run_name,
        }
        if self._trainer is not None and self.trainer.world_size == 1:
            checkpoint[KEY]["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights against this architecture before any of them is loaded."""
        check_state(self, checkpoint["state_dict"])
        ours = checkpoint.get(KEY, {})
        self.image_spec = ours.get("image_spec")
        resumes = self._trainer is not None and self.trainer.training and self.trainer.world_size == 1
        if resumes and "rng" in ours:
            torch.set_rng_state(ours["rng"])

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
        """Build the module that a checkpoint holds.

        Args:
            checkpoint_path: a local file.
            map_location: where tensors go, as in ``torch.load``.
            hparams_file: as in Lightning.
            strict: as in Lightning.
            weights_only: nothing but plain types is ever loaded; ``False`` is refused.
            kwargs: arguments to override. ``backbone`` is needed if it is none of ours.

        Raises:
            CheckpointError: the file cannot be read, or is of another architecture.
        """
        if weights_only is False:
            raise ConfigError("weights_only is False, but pickled code is never executed; leave it out")
        found = read_checkpoint(checkpoint_path)
        if "backbone" not in kwargs:
            kwargs["backbone"] = build_backbone(found.get(KEY, {}).get("backbone"), checkpoint_path)
        return super().load_from_checkpoint(
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            weights_only=True,
            **kwargs,
        )


def as_episode(batch: Any) -> Episode:
    """Accept plain nested pairs ``((xs, ys), (xq, yq))`` for an Episode.

    Raises:
        ShapeError: the batch is something else.
    """
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(p, Sequence) and len(p) == 2 for p in batch):
        episode = Episode(Batch(*batch[0]), Batch(*batch[1]))
        if all(isinstance(tensor, Tensor) for role in episode for tensor in role):
            return episode
    raise ShapeError(
        f"the batch is a {type(batch).__name__}, but a meta-learning step needs an Episode(support=Batch(x, y), "
        "query=Batch(x, y)); let the dataloader yield metalearn.Episode"
    )
