"""The module that every algorithm derives from: training steps, the outer optimiser, and checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from metalearn.bilevel.counts import OracleCounts
from metalearn.carried import read_entry
from metalearn.docstrings import complete_docstring
from metalearn.episode import Episode
from metalearn.errors import CheckpointError, ConfigError, DivergenceError
from metalearn.inner import recording
from metalearn.inner.inner_loop import InnerLoop
from metalearn.metrics import count_right
from metalearn.modules.episodic.batches import as_groups
from metalearn.modules.episodic.core import InnerLR, LossFunction, MemoryMode, Scheduler
from metalearn.modules.episodic.evaluation import Evaluation
from metalearn.modules.episodic.outcome import list_facts, list_pictures
from metalearn.modules.training.checkpoint import KEY, check_state, rename_old_keys
from metalearn.modules.training.loading import load_module
from metalearn.modules.training.outer import NEVER, make_optimizer, read_schedule
from metalearn.modules.training.resuming import check_before, check_progress
from metalearn.reports.outcome import Facts, Picture, RunRecord, Stage

__all__ = ["InnerLR", "LossFunction", "MemoryMode", "MetaModule", "Scheduler"]

EXPLOSION = 1e3
"""A meta-loss this many times the first one (or 1, if that is larger) has exploded."""


class MetaModule(Evaluation):
    """A LightningModule whose training step adapts to each task of an :class:`~metalearn.episode.Episode`.

    Subclasses say which parameters adapt by :meth:`make_learner`.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. It stays as it is. In the inner loop its batch normalisation is that of
            one task, as ``norm`` says.
        options: of the inner loop.
        outer_optimizer: makes the outer optimiser from the parameters.
        outer_scheduler: makes its schedule, counted in outer steps; ``"cosine"`` anneals to 0 at the end of the run.
        metrics: a torchmetrics metric, a collection, a list or a mapping by name. Copies are updated with the query outputs and
            targets of all tasks, and logged as ``val/<name>`` and ``test/<name>``.

    Attributes:
        counts: oracle calls so far of a module whose tasks are bilevel problems; ``None`` for others.
    """

    counts: OracleCounts | None = None

    options_class: ClassVar[type[InnerLoop]] = InnerLoop
    """The options that the algorithm takes; their texts join its docstring."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_docstring(cls, cls.options_class.help_texts())

    def training_step(self, batch: Episode | list[Episode], batch_idx: int) -> Tensor:
        """The mean query loss over the ``B`` tasks after adaptation, with its graph to the outer parameters.

        Args:
            batch: ``B`` tasks of one shape, or a list of tasks of any shapes, each with a task axis of 1; a task of a list uses
                the first ``N`` outputs of the network, ``N`` the classes of its own support set.
            batch_idx: unused.

        Raises:
            DivergenceError: the loss is not finite, or has exploded.
        """
        losses, shares, right, seen = [], [], [], []
        for episode, ways in as_groups(batch, self._count_ways):
            episode, reading = self._prepare(episode)
            with recording(True):
                loss, logits = self.meta_loss(episode, ways)
            losses.append(loss)
            seen.append(episode)
            shares.append(len(logits))
            if reading.classes:
                right.append(count_right(logits[:, :, :ways], episode.query.y, self._ignored).sum())
        if self.training:
            as_given = self.choice is not None and self.choice.as_given
            self._written.update(self._learner.as_given() if as_given else self._learner, seen, self._trainer)
        tasks = sum(shares)
        total = losses[0] if len(losses) == 1 else _mean(losses, shares)
        shown = [total.detach(), *((torch.stack(right).sum() / tasks).to(total.dtype) for _ in right[:1])]
        if self._trainer is not None:  # over all processes
            shown = list(self.trainer.strategy.reduce(torch.stack(shown), reduce_op="mean"))
        number = float(shown[0])
        if not math.isfinite(number):
            self._check_data(seen)
        self._check_divergence(number, "the meta-loss")
        if self._logs:
            self.log("train/loss", shown[0], prog_bar=True, batch_size=tasks)
            if right:
                self.log("train/acc", shown[1], batch_size=tasks)
        return total

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
        """The outer optimiser over all parameters that are trainable now, and its schedule per outer step."""
        self.step_sizes.follow(self._learner.able())
        trainable: list[Any] = [value for value in self.parameters() if value.requires_grad]
        if not trainable:
            rank_zero_info(
                f"{type(self).__name__}: no parameter is trainable, so nothing is trained until a callback unfreezes some"
            )
            trainable = [{"params": []}]
        optimizer = make_optimizer(self.outer_optimizer, iter(trainable), self.learning_rate)
        if self.outer_scheduler is None:
            return optimizer
        if self.outer_scheduler == "cosine":
            scheduler: Any = LambdaLR(optimizer, self._cosine)
        else:
            scheduler = self.outer_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": read_schedule(scheduler, optimizer, self._trainer)}

    def on_validation_end(self) -> None:
        """Step what watches a validation metric, where Lightning would wait for the end of the epoch."""
        if not self._is_run or self.trainer.sanity_checking or not self.trainer.optimizers:
            return
        for config in self.trainer.lr_scheduler_configs:
            if config.frequency == NEVER and config.monitor is not None:
                metrics = self.trainer.callback_metrics
                if config.monitor not in metrics:
                    raise ConfigError(
                        f"outer_scheduler watches {config.monitor!r}, but there are {', '.join(sorted(metrics)) or 'none'}; "
                        "use one of these as monitor"
                    )
                self.lr_scheduler_step(config.scheduler, metrics[config.monitor])

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

    def _check_divergence(self, value: float, what: str) -> None:
        if self._first_loss is None and math.isfinite(value):
            self._first_loss = value
        if not math.isfinite(value) or value > EXPLOSION * max(self._first_loss or 0.0, 1.0):
            self._diverged(what, value)

    def _diverged(self, what: str, value: float) -> None:
        if self._is_run and any(type(each).__name__ == "_LRCallback" for each in self.trainer.callbacks):  # type: ignore[attr-defined]
            return  # LearningRateFinder looks for where it diverges, and puts the weights back
        step = self.global_step if self._trainer is not None else 0
        raise DivergenceError(
            f"{what} is {value:.3g} at step {step}, so training has diverged and stops; use a smaller inner_lr (it is "
            f"{self.hparams.get('inner_lr')}), fewer inner_steps, or a smaller outer learning rate"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network in plain types, so that the checkpoint alone rebuilds the module."""
        data = getattr(self._trainer, "datamodule", None)
        spec = getattr(data, "image_spec", None)
        if spec is not None:
            self.image_spec = spec.to_dict()
            describe = getattr(data, "image_statistics", None)
            self.image_statistics = self.image_statistics if describe is None else describe()
        checkpoint[KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "backbone": self.backbone_description,
            "image_spec": self.image_spec,
            "image_statistics": self.image_statistics,
            "config": self.run_config,
            "run": self.run_name,
        }
        if self._trainer is not None and self.trainer.world_size == 1:
            checkpoint[KEY]["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights against this architecture before any of them is loaded."""
        arguments = checkpoint.get("hyper_parameters")
        if (
            self._named_loss is not None
            and isinstance(arguments, dict)
            and "inner_steps" in arguments
            and "loss" not in arguments
        ):
            raise CheckpointError(
                f"the checkpoint was made with a loss given in Python, but this module has {self._named_loss!r}, with which it "
                "would adapt otherwise; pass loss= to load_from_checkpoint, or to the module"
            )
        rename_old_keys(checkpoint["state_dict"])
        check_state(self, checkpoint["state_dict"])
        check_progress(self, checkpoint)
        entry = read_entry(checkpoint)
        self.image_spec, self.image_statistics = entry.image_spec, entry.image_statistics
        resumes = self._trainer is not None and self.trainer.training and self.trainer.world_size == 1
        if resumes and entry.rng is not None:
            torch.set_rng_state(entry.rng)

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
        return [*own, *(f"val/{name}" for name in self._user_metrics)]

    def check_checkpoint(self, checkpoint: dict[str, Any], trainer: L.Trainer, trains: bool) -> None:
        """Raise before anything is written if a run cannot go on from a checkpoint."""
        check_before(self, trainer, checkpoint, trains)

    def summary_facts(self, stage: Stage) -> Facts:
        """What a test has measured, or what training has cost; see :class:`~metalearn.reports.outcome.ReportsOutcome`."""
        return list_facts(self, stage)

    def pictures(self, run: RunRecord) -> list[Picture]:
        """A task after adaptation, the metric after each inner step, and the training curve."""
        return list_pictures(self, run)

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
        return load_module(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, kwargs)


def _mean(values: list[Tensor], weights: list[int]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum() / sum(weights)
