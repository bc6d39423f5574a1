"""What batches are: what their targets are, and whether network, loss and targets fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.checks import MOST_OF_A_TASK, check_whole
from metalearn.episode import Batch, Episode, check_episode, check_labels
from metalearn.errors import ConfigError, DivergenceError, ShapeError
from metalearn.inner import Adaptation, own_kernels
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.losses import evaluating_loss
from metalearn.inner.task_types import check_task_type, presume_task_type
from metalearn.modules.episodic.loss_checks import name_loss
from metalearn.modules.episodic.runner import InnerRunner
from metalearn.modules.episodic.targets import Reading, find_ignored_label, read_batch

__all__ = ["TaskReader", "check_data"]


class TaskReader:
    """Checks every batch, and remembers what batches of its kind are.

    Args:
        runner: of the inner loop that batches are for.
        loss_order: of the derivatives that training takes of the loss; ``None`` for those of the runner's meta-gradient.

    Attributes:
        named_loss: the loss, if it was given by its name.
    """

    def __init__(self, runner: InnerRunner, loss_order: int | None = None) -> None:
        self._runner, self._loss_order = runner, loss_order
        loss = runner.options.loss
        self.named_loss: str | None = loss if isinstance(loss, str) else None
        check_task_type(
            runner.options.task, runner.loss, repr(self.named_loss) if self.named_loss else name_loss(runner.loss)
        )
        self._kind: bool | None = None
        self._readings: dict[Any, Reading] = {}

    @property
    def classifies(self) -> bool:
        """Whether the targets are class labels: known from the first batch on, before it what the loss suggests."""
        if self._kind is not None:
            return self._kind
        return (self._runner.options.task or presume_task_type(self._runner.loss)) == "classification"

    @property
    def measures(self) -> bool:
        """Whether it is known what the outputs mean, by the loss or by the user, so that metrics can be taken of them."""
        return self._runner.options.task is not None or presume_task_type(self._runner.loss) is not None

    @property
    def ignored_label(self) -> int:
        """The label of examples that the loss leaves out."""
        return find_ignored_label(self._runner.adaptation.loss)

    def prepare(self, episode: Episode, ways: int | None = None) -> tuple[Episode, Reading]:
        """Check shapes and labels, and bring inputs and targets to the types that the network and the loss take.

        Args:
            episode: ``B`` tasks.
            ways: their classes; ``None`` for as many as the network has outputs.
        """
        episode, reading = self._convert(episode, ways)
        if reading.classes:
            _check_classes(self._runner.adaptation, episode, reading.outputs if ways is None else ways)
        return episode, reading

    def prepare_unasked(self, episode: Episode, ways: int | None = None) -> tuple[Episode, Reading, Tensor | None]:
        """The same without a question to labels: those that :meth:`prepare` would refuse are 0.

        Returns:
            the tasks, what they are, and a boolean on their device that is false where a label was refused; ``None`` where there
            are no labels.
        """
        episode, reading = self._convert(episode, ways)
        if not reading.classes:
            return episode, reading, None
        outputs = reading.outputs if ways is None else ways
        parts, sound = [], []
        for role, part in zip(("support", "query"), episode, strict=True):
            right, ignored = (part.y >= 0) & (part.y < outputs), part.y == self.ignored_label
            if role == "support" and self._runner.adaptation.method.fits_one_hot:
                right &= ~ignored
            else:
                right |= ignored
            parts.append(Batch(part.x, part.y.where(right, 0)))
            sound += [right.all(), (~ignored).flatten(1).any(1).all()]
        return Episode(*parts), reading, torch.stack(sound).all()

    def _convert(self, episode: Episode, ways: int | None) -> tuple[Episode, Reading]:
        check_episode(episode)
        if ways is not None:
            check_whole("ways", ways, 1, MOST_OF_A_TASK, "leave it out for all outputs of the network")
        _check_autocast(episode.support.x.device.type)
        readings = [self._read(role, part) for role, part in zip(("support", "query"), episode, strict=True)]
        parts = [reading.convert(part) for reading, part in zip(readings, episode, strict=True)]
        if readings[0].classes != readings[1].classes:
            raise ShapeError(
                f"support.y is {episode.support.y.dtype} of shape {list(episode.support.y.shape)} and query.y "
                f"{episode.query.y.dtype} of shape {list(episode.query.y.shape)}, but both must be class labels, or neither; "
                "build both alike"
            )
        return Episode(*parts), readings[0]

    def count_ways(self, episode: Episode) -> int | None:
        """The classes of a task by its support set; ``None`` where targets are no class labels."""
        check_episode(episode)
        if not self._read("support", episode.support).classes:
            return None
        labels = episode.support.y
        return 1 + int(labels.masked_fill(labels == self.ignored_label, 0).max())

    def _read(self, role: str, part: Batch) -> Reading:
        """What a batch is; tried once for each kind of shapes and types."""
        x, y = part
        # weights may have been replaced, or cast
        weights = tuple((value.shape, value.dtype) for value in self._runner.learner.backbone.parameters())
        key = (x.shape[2:], y.shape[2:], x.dtype, y.dtype, x.device, min(x.shape[1], 2), weights)
        if key not in self._readings:
            self._readings[key] = self._try(role, part)
            if self._readings[key].note and self._kind is None:
                self._runner.tell_once(self._readings[key].note)
        self._kind = self._readings[key].classes
        return self._readings[key]

    def _try(self, role: str, part: Batch) -> Reading:
        x, y = part
        adaptation = self._runner.adaptation
        whole = adaptation.learner.as_given()
        with (
            evaluation_gradients(),
            own_kernels(),
            evaluating_loss(adaptation.loss),
            whole.structure.undisturbed(),
            whole.running("evaluating") as learner,
        ):
            params = {name: usable(value) for name, value in learner.outer().items()}

            @torch.no_grad()
            def forward(x: Tensor) -> Any:
                encoded, _ = learner.encode(params, x, x)
                return learner.support_logits(params, encoded)

            task = Batch(usable(x[0]), usable(y[0]))
            asked = self._runner.options.task
            return read_batch(adaptation, forward, task, role, self.named_loss, self._order(adaptation), asked)

    def _order(self, adaptation: Adaptation) -> int:
        """Up to which order training differentiates the loss."""
        if self._loss_order is not None:
            return self._loss_order
        return 1 if self._runner.options.first_order else adaptation.method.loss_order


def check_data(episodes: Sequence[Episode], step: int) -> None:
    """Raise if it is this rank's data that are not finite, and say of which task.

    Args:
        episodes: of one batch.
        step: of the outer loop, for the message.

    Raises:
        DivergenceError: an entry is not finite.
    """
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
                f"{step}, but all must be; check the data and its transforms"
            )


def _check_autocast(device: str) -> None:
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise ConfigError(
            "the step runs under autocast to float16, where gradients of the inner loop underflow, since only the outer loss "
            "is scaled; use bfloat16, or no autocast"
        )


def _check_classes(adaptation: Adaptation, parts: Sequence[Batch], ways: int) -> None:
    ignored = find_ignored_label(adaptation.loss)
    for role, part in zip(("support", "query"), parts, strict=True):
        check_labels(part.y, ways, role, ignored)
    if adaptation.method.fits_one_hot and bool((parts[0].y == ignored).any()):
        raise ShapeError(
            f"support: a label is {ignored}, which the loss ignores, but this head is fitted to one-hot vectors of "
            "all labels; leave such examples out"
        )
