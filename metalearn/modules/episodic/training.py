"""A step of meta-training: the mean query loss over a batch of tasks, of one shape or of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from metalearn.episode import Episode
from metalearn.inner import Learner, MetaLoss, recording
from metalearn.metrics import count_right
from metalearn.modules.episodic.batches import Group, as_groups
from metalearn.modules.episodic.reading import TaskReader, check_data
from metalearn.modules.episodic.runner import InnerRunner
from metalearn.modules.episodic.written_buffers import WrittenBuffers

__all__ = ["StepResult", "TrainingStep"]

Waits = Callable[[torch.device], bool]


class StepResult(NamedTuple):
    """What a batch has given.

    Attributes:
        loss: the mean over its tasks, with its graph.
        accuracy: of the queries, where targets are class labels.
        tasks: their number.
        episodes: the tasks, as they were read.
        explain: raises if the data are why the loss of an outer step is not finite.
    """

    loss: Tensor
    accuracy: Tensor | None
    tasks: int
    episodes: list[Episode]
    explain: Callable[[int], None]

    def reduce(self, module: L.LightningModule) -> dict[str, Tensor]:
        """The values to log, means over all processes."""
        values = {"loss": self.loss.detach()}
        if self.accuracy is not None:
            values["acc"] = self.accuracy.to(self.loss.dtype)
        if module._trainer is not None:
            reduced = module.trainer.strategy.reduce(torch.stack(list(values.values())), reduce_op="mean")
            values = dict(zip(values, reduced, strict=True))
        return values


class TrainingStep:
    """Takes the meta-loss of a batch.

    Args:
        runner: adapts to tasks.
        reader: reads them.
        classes: that training labels tell apart; ``None`` for as many as the network has outputs.
    """

    def __init__(self, runner: InnerRunner, reader: TaskReader, classes: int | None = None) -> None:
        self._runner, self._reader, self._classes = runner, reader, classes
        self._written = WrittenBuffers()

    def take(
        self, batch: Any, meta_loss: Callable[[Episode, int | None], MetaLoss], waits: Waits = lambda device: False
    ) -> StepResult:
        """The mean meta-loss.

        Args:
            batch: see :meth:`MetaModule.training_step`.
            meta_loss: of tasks that are alike, and of their classes.
            waits: whether nothing may be asked now of tensors on a device. Labels out of range then make the loss NaN.
        """
        losses, shares, right, episodes = [], [], [], []
        groups = as_groups(batch, self._reader.count_ways)
        for group in groups:
            if waits(group.episode.support.x.device):
                episode, reading, sound = self._reader.prepare_unasked(group.episode, self._classes)
            else:
                (episode, reading), sound = self._reader.prepare(group.episode, self._classes), None
            with recording(True):
                loss, logits = meta_loss(episode, group.ways)
            losses.append(loss if sound is None else torch.where(sound, loss, torch.nan))
            episodes.append(episode)
            shares.append(len(logits))
            if reading.classes:
                labels = self._reader.ignored_label
                right.append(count_right(logits[:, :, : group.ways], episode.query.y, labels).sum())
        tasks = sum(shares)
        mean = losses[0] if len(losses) == 1 else _mean(losses, shares)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mean = _reach(mean, self._runner.learner)
        accuracy = torch.stack(right).sum() / tasks if right else None
        return StepResult(mean, accuracy, tasks, episodes, partial(self._explain, groups, episodes))

    def _explain(self, groups: list[Group], episodes: list[Episode], step: int) -> None:
        """Raise if labels are out of range, or entries are not finite."""
        for group in groups:
            self._reader.prepare(group.episode, self._classes)
        check_data(episodes, step)

    def write_buffers(self, episodes: list[Episode], trainer: Any) -> None:
        """Move the buffers on that the network writes in its forward pass, alike on every rank."""
        choice = self._runner.chooser.of_training
        learner = self._runner.learner
        self._written.update(
            learner.as_given() if choice is not None and choice.as_given else learner, episodes, trainer
        )


def _reach(loss: Tensor, learner: Learner) -> Tensor:
    """The loss with a gradient of 0 for what could be trained and is not: several processes wait for all of them."""
    left = [value for name, value in learner.tensors.named() if value.requires_grad and not learner.trains(name)]
    return loss + sum(value.flatten()[:0].sum() for value in left)


def _mean(values: list[Tensor], weights: list[int]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum() / sum(weights)
