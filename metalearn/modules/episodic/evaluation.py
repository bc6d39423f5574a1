"""Validation, test and prediction: gradients where Lightning disables them, and metrics per task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from metalearn.episode import Episode
from metalearn.errors import DivergenceError
from metalearn.inner.grad_mode import evaluation_gradients
from metalearn.inner.losses import evaluating_loss
from metalearn.intervals import Interval, interval
from metalearn.modules.episodic.batches import as_tasks
from metalearn.modules.episodic.measures import KINDS, MEASURES, Kind, find_kind, find_threshold, measure
from metalearn.modules.episodic.reading import TaskReader, check_data
from metalearn.modules.episodic.records import QueryRecords
from metalearn.modules.episodic.runner import InnerRunner, make_usable
from metalearn.modules.episodic.scores import Scores
from metalearn.modules.episodic.trainers import get_step, is_run, may_log

__all__ = ["Evaluator", "Outcome"]

Outcome = dict[str, Tensor]


class Evaluated(NamedTuple):
    """Tasks that are alike, after adaptation.

    Attributes:
        episode: the tasks.
        outputs: of the queries, ``[B, n, ...]``, after each number of inner steps.
        alone: after the last step, where each query is answered by itself; ``None`` where that was not asked for.
        numbers: the tasks' numbers ``[B]``.
        kind: which metrics they have.
    """

    episode: Episode
    outputs: dict[int, Tensor]
    alone: Tensor | None
    numbers: Tensor
    kind: Kind


class Evaluator:
    """Evaluates a module's tasks, and keeps what each loader's tasks have scored.

    With several loaders, their keys end in ``/dataloader_idx_0``, ``/dataloader_idx_1``, ..., as Lightning's do, and the plain
    key, such as ``val/acc``, is that of the first.

    Args:
        runner: adapts to tasks.
        reader: reads them.
        metrics: the user's, by name.

    Attributes:
        metrics: those.
    """

    def __init__(self, runner: InnerRunner, reader: TaskReader, metrics: Mapping[str, Metric]) -> None:
        self._runner, self._reader = runner, reader
        self.metrics = dict(metrics)
        self._scores: dict[tuple[str, int], Scores] = {}
        self._results: dict[tuple[int, str, int], Interval] = {}

    def start(self, stage: str) -> None:
        """Forget what the tasks of a stage have scored."""
        if stage == "test":
            self._results.clear()
        for (other, _), scores in self._scores.items():
            if other == stage:
                scores.start()

    def score(self, module: L.LightningModule, stage: str, batch: Any, index: int) -> Outcome:
        """Evaluate a batch of the loader ``index``: after the last inner step, and in a test after each.

        Returns:
            the mean query ``"loss"``, and ``"acc"`` where targets are class labels.
        """
        last = self._runner.options.steps_in_evaluation
        steps = range(last + 1) if stage == "test" else [last]
        scores = self._scores_of(stage, index)
        tasks, totals = 0, dict[str, Tensor]()
        alone = stage == "test" and self._tests_alone(module)
        for evaluated in self._evaluate(module, batch, steps, scores, alone):
            tasks += len(evaluated.numbers)
            for step, outputs in evaluated.outputs.items():
                end = f"_step_{step}" if stage == "test" else ""
                values = self._score_outputs(scores, evaluated, outputs, end, module.device)
                if step == last:
                    if stage == "test":
                        self._measure(scores, evaluated, outputs, module.device)
                    scores.update(outputs, evaluated.episode.query.y)
                    totals = {key: totals.get(key, 0.0) + value.sum() for key, value in values.items()}
            if evaluated.alone is not None:
                self._score_outputs(scores, evaluated, evaluated.alone, "_independent", module.device)
        return {key: value / tasks for key, value in totals.items()}

    def finish_validation(self, module: L.LightningModule) -> None:
        """Log the means over all tasks of all ranks."""
        for index, end in enumerate(self._endings(module, "val")):
            scores = self._scores_of("val", index)
            kinds = ("loss", "acc") if self._agree_on_kind(module, scores) == "classes" else ("loss",)
            values = {kind: scores.mean(kind, module.device).compute().mean for kind in kinds}
            self._log(module, "val", values | scores.compute(module.device), index, end, shown=kinds[-1])
            scores.start()

    def finish_test(self, module: L.LightningModule) -> None:
        """Log the means and intervals over all tasks of all ranks, and keep them."""
        last = self._runner.options.steps_in_evaluation
        for index, end in enumerate(self._endings(module, "test")):
            scores = self._scores_of("test", index)
            values: dict[str, float] = {}
            measured = self._agree_on_kind(module, scores)
            for kind in ("loss", "acc") if measured == "classes" else ("loss",):
                if self._tests_alone(module):
                    values |= self._finish_alone(module, scores, kind, index)
                for step in range(last + 1):
                    # a rank without tasks has made no metric yet, and all ranks gather alike
                    mean = scores.mean(f"{kind}_step_{step}", module.device).compute()
                    self._results[index, kind, step] = mean
                    values[f"{kind}_step_{step}"] = mean.mean
                values[kind], values[f"{kind}_ci95"] = mean.mean, mean.ci95
            values |= self._finish_measures(module, scores, measured, index)
            self._log(module, "test", values | scores.compute(module.device), index, end)

    def predict(self, module: L.LightningModule, batch: Any, index: int) -> list[Tensor]:
        """For tasks that are alike, one after another: class probabilities, or outputs where targets are no class labels."""
        last = self._runner.options.steps_in_evaluation
        predictions = []
        for evaluated in self._evaluate(module, batch, [last], self._scores_of("predict", index)):
            logits = evaluated.outputs[last]
            predictions.append(logits.float().softmax(2) if evaluated.kind == "classes" else logits)
        return predictions

    def results(self, index: int) -> dict[tuple[str, int], Interval]:
        """The mean and interval of each metric of a test, as :meth:`MetaModule.test_results` gives them."""
        return {(kind, step): value for (loader, kind, step), value in self._results.items() if loader == index}

    def records(self, index: int) -> QueryRecords:
        """What the queries of a test were answered, as :meth:`MetaModule.test_records` gives it."""
        return self._scores_of("test", index).records

    def table(self, index: int) -> tuple[list[str], list[list[float]]]:
        """A header, and the metrics of every task of a test, as :meth:`MetaModule.test_table` gives them."""
        means = self._scores_of("test", index).means
        gathered = {name: metric.gathered for name, metric in means.items() if metric.gathered is not None}
        if not gathered:
            return ["task"], []
        numbers = next(iter(gathered.values()))[0].tolist()
        rows = zip(numbers, *(values.tolist() for _, values in gathered.values()), strict=True)
        return ["task", *gathered], [list(row) for row in rows]

    def _scores_of(self, stage: str, index: int) -> Scores:
        if (stage, index) not in self._scores:
            self._scores[stage, index] = Scores(self.metrics)
        return self._scores[stage, index]

    def _endings(self, module: L.LightningModule, stage: str) -> list[str]:
        """What the keys of each loader end in."""
        count = 1 + max((index for other, index in self._scores if other == stage), default=0)
        if is_run(module):
            batches = module.trainer.num_val_batches if stage == "val" else module.trainer.num_test_batches
            count = max(len(batches), 1)
        return [""] if count == 1 else [f"/dataloader_idx_{index}" for index in range(count)]

    def _score_outputs(
        self, scores: Scores, evaluated: Evaluated, outputs: Tensor, end: str, device: torch.device
    ) -> dict[str, Tensor]:
        """Take note of the loss and the accuracy of each task, ``[B]``."""
        targets, numbers = evaluated.episode.query.y, evaluated.numbers
        values = {"loss": self._losses(outputs, targets)}
        scores.mean(f"loss{end}", device).update(values["loss"], numbers)
        if evaluated.kind == "classes":
            accuracy = scores.mean(f"acc{end}", device)
            accuracy.update(outputs, targets, numbers, self._reader.ignored_label)  # type: ignore[call-arg]
            values["acc"] = accuracy.values[-1]
        return values

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The query loss of every task, ``[B]``, in eval mode as the outputs."""
        adaptation = self._runner.adaptation
        with torch.no_grad(), evaluating_loss(adaptation.loss):
            pairs = zip(outputs, targets, strict=True)
            return torch.stack([adaptation.task_loss({}, logits, labels) for logits, labels in pairs])

    def _log(
        self, module: L.LightningModule, stage: str, values: dict[str, float], index: int, end: str, shown: str = ""
    ) -> None:
        if not may_log(module):
            return
        for ending in {end, ""} if index == 0 else {end}:
            for name, value in values.items():
                module.log(f"{stage}/{name}{ending}", value, prog_bar=name == shown, add_dataloader_idx=False)

    def _measure(self, scores: Scores, evaluated: Evaluated, outputs: Tensor, device: torch.device) -> None:
        """Take note of the further metrics of each task, after the last inner step."""
        kind, targets, ignored = evaluated.kind, evaluated.episode.query.y, self._reader.ignored_label
        for name, values in measure(kind, self._runner.loss, outputs, targets, ignored).items():
            if name not in self.metrics:
                scores.mean(name, device).update(values, evaluated.numbers)
        threshold = find_threshold(self._runner.loss)
        scores.records.update(kind, outputs, targets, evaluated.numbers, ignored, threshold)

    def _finish_measures(self, module: L.LightningModule, scores: Scores, kind: Kind, index: int) -> dict[str, float]:
        """The further metrics over all tasks of all ranks, which are kept for the summary too."""
        last, values = self._runner.options.steps_in_evaluation, dict[str, float]()
        for name in MEASURES[kind]:
            if name not in self.metrics:
                mean = self._results[index, name, last] = scores.mean(name, module.device).compute()
                values[name], values[f"{name}_ci95"] = mean.mean, mean.ci95
        error = scores.records.finish(kind, module.device)
        if error is not None and "calibration_error" not in self.metrics:
            tasks = self._results[index, "acc", last].tasks
            self._results[index, "calibration_error", last] = Interval(error, math.nan, tasks)
            values["calibration_error"] = error
        return values

    def _agree_on_kind(self, module: L.LightningModule, scores: Scores) -> Kind:
        """Which metrics tasks have, also on a rank that has seen none."""
        known: Kind = scores.kind or ("classes" if self._reader.classifies else "none")
        if module._trainer is None or module.trainer.world_size == 1:
            return known
        seen = torch.tensor(-1.0 if scores.kind is None else float(KINDS.index(scores.kind)), device=module.device)
        largest = float(module.trainer.strategy.reduce(seen, reduce_op="max"))
        return known if largest < 0 else KINDS[int(largest)]

    def _tests_alone(self, module: Any) -> bool:
        """Whether a test answers queries one by one too: where that makes a difference, unless the user has turned it off."""
        return bool(module.tests_independently) and self._runner.learner.needs_many_queries

    def _finish_alone(self, module: L.LightningModule, scores: Scores, kind: str, index: int) -> dict[str, float]:
        """The metric of queries that are answered one by one, and what it is more than that of queries together, by task."""
        last = self._runner.options.steps_in_evaluation
        alone, together = (scores.mean(f"{kind}{end}", module.device) for end in ("_independent", f"_step_{last}"))
        measured, _ = alone.compute(), together.compute()
        assert alone.gathered is not None
        assert together.gathered is not None
        self._results[index, f"{kind}_independent", last] = measured
        self._results[index, f"{kind}_difference", last] = interval(alone.gathered[1] - together.gathered[1])
        return {f"{kind}_independent": measured.mean, f"{kind}_independent_ci95": measured.ci95}

    def _evaluate(
        self, module: L.LightningModule, batch: Any, steps: Iterable[int], scores: Scores, alone: bool = False
    ) -> Iterator[Evaluated]:
        """Tasks that are alike, one after another in the order of their numbers."""
        steps = list(steps)
        for episode, ways in as_tasks(batch, self._reader.count_ways):
            episode, reading = self._reader.prepare(episode)
            numbers = _number_tasks(module, scores, len(episode.support.x))
            with evaluation_gradients():
                episode = make_usable(episode)
                outputs, one_by_one = self._runner.evaluate(episode, ways, steps, alone)
            for logits in outputs.values():
                self._check_outputs(module, episode, logits, numbers)
            sure, some = self._reader.measures, next(iter(outputs.values()))
            scores.kind = find_kind(reading, self._runner.loss, sure, some, episode.query.y)
            yield Evaluated(episode, outputs, one_by_one, numbers, scores.kind)

    def _check_outputs(self, module: L.LightningModule, episode: Episode, logits: Tensor, numbers: Tensor) -> None:
        finite = logits.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            check_data([episode], get_step(module))
            raise DivergenceError(
                f"the outputs of task {int(numbers[~finite][0])} are not finite after adaptation, so no accuracy is reported; "
                f"use a smaller inner_lr (it is {module.hparams.get('inner_lr')})"
            )


def _number_tasks(module: L.LightningModule, scores: Scores, tasks: int) -> Tensor:
    """The numbers ``[B]`` of the next tasks of a loader: ranks take turns."""
    world, rank = 1, 0
    if module._trainer is not None:
        world, rank = module.trainer.world_size, module.trainer.global_rank
    numbers = torch.arange(scores.seen, scores.seen + tasks, device=module.device) * world + rank
    scores.seen += tasks
    return numbers
