"""Validation, test and prediction: gradients where Lightning disables them, and metrics per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.errors import DivergenceError
from metalearn.inner import evaluate
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.metrics import Interval
from metalearn.modules.episodic.batches import as_tasks
from metalearn.modules.episodic.core import MetaCore
from metalearn.modules.episodic.scores import Scores

__all__ = ["Evaluation"]

Outcome = dict[str, Tensor]


class Evaluated(NamedTuple):
    """Tasks that are alike, after adaptation.

    Attributes:
        episode: the tasks.
        outputs: of the queries, ``[B, n, ...]``, after each number of inner steps.
        numbers: the tasks' numbers ``[B]``.
        classes: whether targets are class labels.
    """

    episode: Episode
    outputs: dict[int, Tensor]
    numbers: Tensor
    classes: bool


class Evaluation(MetaCore):
    """The evaluation steps of a :class:`MetaModule`.

    With several loaders, their keys end in ``/dataloader_idx_0``, ``/dataloader_idx_1``, ..., as Lightning's do, and the plain
    key, such as ``val/acc``, is that of the first.
    """

    def on_validation_epoch_start(self) -> None:
        self._start("val")

    def validation_step(self, batch: Episode | list[Episode], batch_idx: int, dataloader_idx: int = 0) -> Outcome:
        """The mean query ``"loss"`` of the batch, and its ``"acc"`` where targets are class labels."""
        return self._score("val", batch, dataloader_idx, [self.eval_inner_steps])

    def on_validation_epoch_end(self) -> None:
        for index, end in enumerate(self._endings("val")):
            scores = self._scores_of("val", index)
            classes = self._agree_on_classes(scores)
            found = {"loss": scores.mean("loss", self.device).compute().mean}
            if classes:
                found["acc"] = scores.mean("acc", self.device).compute().mean
            shown = "acc" if classes else "loss"
            self._report("val", found | scores.compute(self.device), index, end, shown)
            scores.start()

    def on_test_epoch_start(self) -> None:
        self._results.clear()
        self._start("test")

    def test_step(self, batch: Episode | list[Episode], batch_idx: int, dataloader_idx: int = 0) -> Outcome:
        """See :meth:`validation_step`."""
        return self._score("test", batch, dataloader_idx, range(self.eval_inner_steps + 1))

    def on_test_epoch_end(self) -> None:
        for index, end in enumerate(self._endings("test")):
            scores = self._scores_of("test", index)
            found: dict[str, float] = {}
            for kind in ("loss", "acc") if self._agree_on_classes(scores) else ("loss",):
                for step in range(self.eval_inner_steps + 1):
                    # a rank without tasks has made no metric yet, and all ranks gather alike
                    each = scores.mean(f"{kind}_step_{step}", self.device).compute()
                    self._results[index, kind, step] = each
                    found[f"{kind}_step_{step}"] = each.mean
                found[kind], found[f"{kind}_ci95"] = each.mean, each.ci95
            self._report("test", found | scores.compute(self.device), index, end)

    def test_results(self, dataloader_idx: int = 0) -> dict[tuple[str, int], Interval]:
        """The last test's mean and interval of ``"acc"`` and ``"loss"`` after each number of inner steps."""
        return {(kind, step): found for (index, kind, step), found in self._results.items() if index == dataloader_idx}

    def test_table(self, dataloader_idx: int = 0) -> tuple[list[str], list[list[float]]]:
        """The last test's metrics: a header, and a row for every task of every rank in ascending order of task."""
        means = self._scores_of("test", dataloader_idx).means
        found = {name: metric.gathered for name, metric in means.items() if metric.gathered is not None}
        if not found:
            return ["task"], []
        numbers = next(iter(found.values()))[0].tolist()
        rows = zip(numbers, *(values.tolist() for _, values in found.values()), strict=True)
        return ["task", *found], [list(row) for row in rows]

    def predict_step(
        self, batch: Episode | list[Episode], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor | list[Tensor]:
        """Class probabilities ``[B, n, N]`` of the queries (the outputs themselves where targets are no class labels); a list of
        them, one a task, for a list of tasks."""
        found = []
        scores = self._scores_of("predict", dataloader_idx)
        for tasks in self._evaluate(batch, [self.eval_inner_steps], scores):
            logits = tasks.outputs[self.eval_inner_steps]
            found.append(logits.float().softmax(2) if tasks.classes else logits)
        return found if isinstance(batch, list) and len(found) == len(batch) else found[0]

    def _scores_of(self, stage: str, index: int) -> Scores:
        if (stage, index) not in self._scores:
            self._scores[stage, index] = Scores(self._user_metrics)
        return self._scores[stage, index]

    def _start(self, stage: str) -> None:
        for (own, _), scores in self._scores.items():
            if own == stage:
                scores.start()

    def _endings(self, stage: str) -> list[str]:
        """What the keys of each loader end in."""
        count = 1 + max((index for own, index in self._scores if own == stage), default=0)
        if self._is_run:
            batches = self.trainer.num_val_batches if stage == "val" else self.trainer.num_test_batches
            count = max(len(batches), 1)
        return [""] if count == 1 else [f"/dataloader_idx_{index}" for index in range(count)]

    def _score(self, stage: str, batch: Any, index: int, steps: Iterable[int]) -> Outcome:
        scores = self._scores_of(stage, index)
        tasks, totals = 0, dict[str, Tensor]()
        for found in self._evaluate(batch, steps, scores):
            targets = found.episode.query.y
            tasks += len(targets)
            for step, outputs in found.outputs.items():
                end = "" if stage == "val" else f"_step_{step}"
                losses = self._losses(outputs, found.episode)
                scores.mean(f"loss{end}", self.device).update(losses, found.numbers)
                values = {"loss": losses}
                if found.classes:
                    accuracy = scores.mean(f"acc{end}", self.device)
                    accuracy.update(outputs, targets, found.numbers, self._ignored)  # type: ignore[call-arg]
                    values["acc"] = accuracy.values[-1]
                if step == self.eval_inner_steps:
                    scores.update(outputs, targets)
                    totals = {key: totals.get(key, 0.0) + value.sum() for key, value in values.items()}
        return {key: value / tasks for key, value in totals.items()}

    def _report(self, stage: str, values: dict[str, float], index: int, end: str, shown: str = "") -> None:
        if not self._logs:
            return
        for ending in {end, ""} if index == 0 else {end}:
            for name, value in values.items():
                self.log(f"{stage}/{name}{ending}", value, prog_bar=name == shown, add_dataloader_idx=False)

    def _agree_on_classes(self, scores: Scores) -> bool:
        """Whether targets are class labels, also on a rank that has seen no task."""
        known = self.classifies if scores.classes is None else scores.classes
        if self._trainer is None or self.trainer.world_size == 1:
            return known
        seen = torch.tensor(-1.0 if scores.classes is None else float(scores.classes), device=self.device)
        found = float(self.trainer.strategy.reduce(seen, reduce_op="max"))
        return known if found < 0 else found > 0

    def _evaluate(self, batch: Episode | list[Episode], steps: Iterable[int], scores: Scores) -> Iterator[Evaluated]:
        """For tasks that are alike, one after another in the order of their numbers: what :class:`Evaluated` holds."""
        steps = list(steps)
        for episode, ways in as_tasks(batch, self._count_ways):
            yield self._evaluate_alike(episode, ways, steps, scores)

    def _evaluate_alike(self, episode: Episode, ways: int | None, steps: list[int], scores: Scores) -> Evaluated:
        episode, reading = self._prepare(episode)
        scores.classes = reading.classes
        tasks = len(episode.support.x)
        with evaluation_gradients():
            episode = Episode(*(Batch(usable(role.x), usable(role.y)) for role in episode))
            with self._running(episode, ways, evaluating=True) as (adaptation, plan, _):
                params = {name: usable(value) for name, value in adaptation.outer().items()}
                outputs = evaluate(adaptation, params, episode, steps, self._fixed_sizes(), plan)
        if ways is not None:
            outputs = {step: logits[:, :, :ways] for step, logits in outputs.items()}
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self._trainer is not None else (1, 0)
        numbers = torch.arange(scores.seen, scores.seen + tasks, device=self.device) * world + rank
        scores.seen += tasks
        for logits in outputs.values():
            finite = logits.isfinite().flatten(1).all(1)
            if not bool(finite.all()):
                self._check_data([episode])
                task = int(numbers[~finite][0])
                raise DivergenceError(
                    f"the outputs of task {task} are not finite after adaptation, so no accuracy is reported; "
                    f"use a smaller inner_lr (it is {self.hparams.get('inner_lr')})"
                )
        return Evaluated(episode, outputs, numbers, reading.classes)

    def _losses(self, outputs: Tensor, episode: Episode) -> Tensor:
        """The query loss of every task, ``[B]``, in eval mode as the outputs."""
        with torch.no_grad(), self._loss_in_eval():
            pairs = zip(outputs, episode.query.y, strict=True)
            return torch.stack([self._adaptation.task_loss({}, each, targets) for each, targets in pairs])
