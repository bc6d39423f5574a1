"""Validation, test and prediction: gradients where Lightning disables them, and metrics per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.errors import DivergenceError
from metalearn.inner import evaluate, evaluating, own_kernels
from metalearn.metrics import EpisodeAccuracy, EpisodeMean, Interval
from metalearn.modules.batches import as_tasks
from metalearn.modules.core import MetaCore
from metalearn.modules.grad_mode import evaluation_gradients, usable

__all__ = ["Evaluation"]


class Evaluation(MetaCore):
    """The evaluation steps of a :class:`MetaModule`."""

    def on_validation_epoch_start(self) -> None:
        self._seen = 0

    def validation_step(self, batch: Episode | list[Episode], batch_idx: int) -> None:
        for episode, outputs, numbers in self._evaluate(batch, [self.eval_inner_steps]):
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

    def test_step(self, batch: Episode | list[Episode], batch_idx: int) -> None:
        for episode, outputs, numbers in self._evaluate(batch, range(self.eval_inner_steps + 1)):
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

    def predict_step(self, batch: Episode | list[Episode], batch_idx: int) -> Tensor | list[Tensor]:
        """Class probabilities ``[B, n, N]`` of the queries (the outputs themselves for regression); a list of them, one a task,
        for a list of tasks."""
        found = []
        for _, outputs, _ in self._evaluate(batch, [self.eval_inner_steps]):
            logits = outputs[self.eval_inner_steps]
            found.append(logits.float().softmax(-1) if self.classifies else logits)
        return found if isinstance(batch, list) and len(found) == len(batch) else found[0]

    def _test_metric(self, name: str, kind: type[EpisodeMean]) -> Any:
        if name not in self.test_steps:
            self.test_steps[name] = kind().to(self.device)
        return self.test_steps[name]

    def _evaluate(
        self, batch: Episode | list[Episode], steps: Iterable[int]
    ) -> Iterator[tuple[Episode, dict[int, Tensor], Tensor]]:
        """For tasks that are alike, one after another in the order of their numbers: the tasks, their query outputs after each
        number of inner steps, and their numbers."""
        steps = list(steps)
        for episode, ways in as_tasks(batch, self.classifies):
            yield self._evaluate_alike(episode, ways, steps)

    def _evaluate_alike(
        self, episode: Episode, ways: int | None, steps: list[int]
    ) -> tuple[Episode, dict[int, Tensor], Tensor]:
        self._check(episode)
        tasks = len(episode.support.x)
        with evaluation_gradients():
            episode = Episode(*(Batch(usable(role.x), usable(role.y)) for role in episode))
            adaptation, plan, operators = self._way(episode, ways)
            params = {name: usable(value) for name, value in adaptation.outer().items()}
            with evaluating(self.backbone), own_kernels(*operators):
                outputs = evaluate(adaptation, params, episode, steps, self._fixed_sizes(), plan)
        outputs = {step: logits[..., :ways] for step, logits in outputs.items()}
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
        pairs = zip(logits, episode.query.y, strict=True)
        return torch.stack([self._adaptation.task_loss({}, outputs, targets) for outputs, targets in pairs])
