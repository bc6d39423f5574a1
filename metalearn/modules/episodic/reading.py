"""The part of a module that looks at batches: what their targets are, and whether network, loss and targets fit."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from metalearn.checks import check_whole
from metalearn.episode import Batch, Episode, check_episode, check_labels
from metalearn.errors import ConfigError, DivergenceError, ShapeError
from metalearn.inner import Adaptation, Learner, ModuleLoss, evaluating, own_kernels
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.ridge import RidgeAdaptation
from metalearn.modules.episodic.targets import Reading, find_ignored_label, presume_classes, read_batch

__all__ = ["TaskReader"]


class TaskReader(L.LightningModule):
    """Checks every batch, and remembers what batches of its kind are; see :class:`~metalearn.modules.MetaModule`."""

    backbone: nn.Module
    first_order: bool
    _adaptation: Adaptation

    def expect(self, loss: Any) -> None:
        """Take note of the loss as it was given: a name, a function or a module."""
        self._named_loss = loss if isinstance(loss, str) else None
        self._presumed = presume_classes(loss)
        self._kind: bool | None = None
        self._readings: dict[Any, Reading] = {}

    @property
    def _learner(self) -> Learner:
        return self._adaptation.learner

    @property
    def classifies(self) -> bool:
        """Whether the targets are class labels: known from the first batch on, before it what the loss suggests."""
        return self._presumed if self._kind is None else self._kind

    def _prepare(self, episode: Episode, ways: int | None = None) -> tuple[Episode, Reading]:
        """Check shapes and labels, and bring inputs and targets to the types that the network and the loss take."""
        check_episode(episode)
        if ways is not None:
            check_whole("ways", ways, 1, 100_000, "leave it out for all outputs of the network")
        device = episode.support.x.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            raise ConfigError(
                "the step runs under autocast to float16, where gradients of the inner loop underflow, since only the outer loss "
                "is scaled; use bfloat16, or no autocast"
            )
        readings = [self._read(role, part) for role, part in zip(("support", "query"), episode, strict=True)]
        parts = [reading.convert(part) for reading, part in zip(readings, episode, strict=True)]
        if readings[0].classes != readings[1].classes:
            raise ShapeError(
                f"support.y is {episode.support.y.dtype} of shape {list(episode.support.y.shape)} and query.y "
                f"{episode.query.y.dtype} of shape {list(episode.query.y.shape)}, but both must be class labels, or neither; "
                "build both alike"
            )
        if readings[0].classes:
            outputs = readings[0].outputs if ways is None else ways
            for role, part in zip(("support", "query"), parts, strict=True):
                check_labels(part.y, outputs, role, self._ignored)
            if self._fits_one_hot and bool((parts[0].y == self._ignored).any()):
                raise ShapeError(
                    f"support: a label is {self._ignored}, which the loss ignores, but this head is fitted to one-hot vectors of "
                    "all labels; leave such examples out"
                )
        return Episode(*parts), readings[0]

    def _count_ways(self, episode: Episode) -> int | None:
        """The classes of a task by its support set; ``None`` where targets are no class labels."""
        check_episode(episode)
        if not self._read("support", episode.support).classes:
            return None
        return 1 + int(episode.support.y.masked_fill(episode.support.y == self._ignored, 0).max())

    @property
    def _fits_one_hot(self) -> bool:
        """Whether tasks are solved by squared errors to one-hot vectors, whatever the loss of the queries."""
        return (
            isinstance(self._adaptation, RidgeAdaptation) or getattr(self._adaptation, "inner_loss", None) is not None
        )

    @property
    def _ignored(self) -> int:
        return find_ignored_label(self._adaptation.loss)

    def _read(self, role: str, part: Batch) -> Reading:
        """What a batch is; tried once for each kind of shapes and types."""
        x, y = part
        weights = tuple(
            (value.shape, value.dtype) for value in self.backbone.parameters()
        )  # may have been replaced, or cast
        key = (x.shape[2:], y.shape[2:], x.dtype, y.dtype, x.device, min(x.shape[1], 2), weights)
        if key not in self._readings:
            given = self._learner.as_given()
            with (
                evaluation_gradients(),
                own_kernels(),
                self._loss_in_eval(),
                given.structure.undisturbed(),
                given.running("evaluating") as learner,
            ):
                params = {name: usable(value) for name, value in learner.outer().items()}

                @torch.no_grad()
                def forward(x: Tensor) -> Any:
                    encoded, _ = learner.encode(params, x, x)
                    return learner.support_logits(params, encoded)

                task = Batch(usable(x[0]), usable(y[0]))
                self._readings[key] = read_batch(
                    self._adaptation, forward, task, role, self._named_loss, self._loss_order()
                )
        self._kind = self._readings[key].classes
        return self._readings[key]

    def _check_data(self, episodes: list[Episode]) -> None:
        """Raise if it is this rank's data that are not finite, and say of which task."""
        for role, values, name in (
            (role, values, name)
            for episode in episodes
            for role, part in zip(("support", "query"), episode, strict=True)
            for name, values in (("x", part.x), ("y", part.y))
        ):
            bad = ~values.isfinite().flatten(1).all(1)
            if bool(bad.any()):
                raise DivergenceError(
                    f"{role}.{name} of task {int(bad.int().argmax())} of the batch has an entry that is not finite at step "
                    f"{self.global_step if self._trainer is not None else 0}, but all must be; check the data and its transforms"
                )

    @property
    def _is_run(self) -> bool:
        """Whether a trainer runs this very module, and not one that it is a part of."""
        return self._trainer is not None and self._trainer.lightning_module is self

    @property
    def _logs(self) -> bool:
        """Whether ``self.log`` has somewhere to go: not where a step is called by hand, or by a module around this one."""
        return self._is_run and self._current_fx_name is not None and not self.trainer.barebones

    def _loss_order(self) -> int:
        """Up to which order training differentiates the loss."""
        return 1 if self.first_order or isinstance(self._adaptation, RidgeAdaptation) else 2

    def _loss_in_eval(self) -> contextlib.AbstractContextManager[None]:
        """Within this context a loss that is a module is in ``eval()``."""
        loss = self._adaptation.loss
        return evaluating(loss.module) if isinstance(loss, ModuleLoss) else contextlib.nullcontext()
