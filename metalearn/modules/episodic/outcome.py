"""What an episodic module tells in a summary, and the pictures of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from metalearn.bilevel.counts import OracleCounts
from metalearn.inner.bands import BandLoss
from metalearn.inner.norm.policies import has_batch_norm
from metalearn.intervals import Interval
from metalearn.modules.episodic.class_report import draw_records
from metalearn.modules.episodic.records import QueryRecords
from metalearn.modules.episodic.task_picture import AdaptsToTasks, draw_task
from metalearn.reports.bilevel_pictures import draw_costs
from metalearn.reports.facts import as_data, as_result, describe_interval, format_loss, format_share, list_oracle_calls
from metalearn.reports.outcome import Fact, Picture, RunRecord, Stage
from metalearn.reports.pictures import draw_curve, draw_steps

__all__ = ["find_better_steps", "list_facts", "list_pictures"]


class ReportedModule(AdaptsToTasks, Protocol):
    """What the summary asks of a module."""

    backbone: nn.Module

    @property
    def inner_steps(self) -> int:
        """The inner steps in training."""

    @property
    def norm(self) -> str:
        """The policy of batch normalisation."""

    @property
    def counts(self) -> OracleCounts | None:
        """The oracle calls of a module whose tasks are bilevel problems."""

    def test_results(self) -> dict[tuple[str, int], Interval]:
        """Mean and interval of ``"acc"`` and ``"loss"`` after each number of inner steps."""

    def test_records(self) -> QueryRecords:
        """What the queries of the last test were answered."""


def list_facts(module: ReportedModule, stage: Stage) -> list[Fact]:
    """The lines of the summary: what the last test has measured, or the oracle calls of a training."""
    return list_oracle_calls(module.counts) if stage == "fit" else _list_test_facts(module)


def list_pictures(module: ReportedModule, run: RunRecord) -> list[Picture]:
    """The pictures of a run: a task after adaptation, the metric after each inner step, the training curve, the costs."""
    pictures = []
    results = module.test_results()
    if run.tested and hasattr(run.data, "episode"):
        pictures.append(Picture("episode.png", lambda path: draw_task(path, run.data, module, run.name)))
    if run.tested and results:
        kind, scale, label = ("acc", 100.0, "test accuracy (%)") if module.classifies else ("loss", 1.0, "test loss")
        values = {step: scale * results[kind, step].mean for step in range(module.eval_inner_steps + 1)}
        pictures.append(
            Picture("inner_steps.png", lambda path: draw_steps(path, values, module.inner_steps, label, run.name))
        )
    if run.tested:
        pictures += draw_records(module.test_records(), run)
    if run.has_losses:
        pictures.append(Picture("training.png", lambda path: draw_curve(path, run.rows, run.name)))
        if module.counts is not None:
            pictures.append(Picture("costs.png", lambda path: draw_costs(path, run.rows, run.name)))
    return pictures


def find_better_steps(results: Mapping[tuple[str, int], Interval], last: int, classifies: bool) -> list[Fact]:
    """The number of inner steps that is best, where the one that is reported is worse by more than both intervals.

    Args:
        results: of a test, by metric and number of steps.
        last: the number of steps that the headline is of.
        classifies: whether accuracies are compared, or losses.
    """
    kind, sign = ("acc", 1.0) if classifies else ("loss", -1.0)
    by_steps = {step: interval for (name, step), interval in results.items() if name == kind}
    best = max(by_steps, key=lambda step: sign * by_steps[step].mean)
    gain = sign * (by_steps[best].mean - by_steps[last].mean)
    if not gain > max(by_steps[best].ci95, by_steps[last].ci95):
        return []
    value = (format_share if classifies else format_loss)(by_steps[best])
    data = {"test": {"best_inner_steps": best}}
    if best == 0:
        text = f"{value} before adaptation: the inner steps do harm; use a smaller inner_lr"
        return [Fact("better without", text, data)]
    steps = f"{best} inner step{'s' * (best > 1)}"
    return [Fact("better earlier", f"{value} after {steps} of {last}: use --model.eval_inner_steps {best}", data)]


def _list_test_facts(module: ReportedModule) -> list[Fact]:
    results = module.test_results()
    last = module.eval_inner_steps
    if not results:
        return [Fact("test", "no task was tested", {"notes": ["no task was tested"]})]
    facts = _list_accuracies(results, last) if module.classifies else _list_losses(results, last)
    facts[1:1] = _list_independent(results, last, module.classifies)
    facts += _list_measures(results, last, module.adaptation.loss)
    facts += find_better_steps(results, last, module.classifies)
    text = f"{module.inner_steps} in training, {last} at test"
    if has_batch_norm(module.backbone):
        text += f"; batch norm '{module.norm}'"
    return [*facts, Fact("inner steps", text, {"test": {"inner_steps": last}})]


def _list_accuracies(results: Mapping[tuple[str, int], Interval], last: int) -> list[Fact]:
    accuracy, before = results["acc", last], results["acc", 0]
    data = as_result("test", "accuracy", accuracy)
    data["test"]["loss"] = as_data(results["loss", last])
    data["test"]["accuracy_before_adaptation"] = as_data(before)
    text = f"{format_share(accuracy)}  {describe_interval(accuracy)}"
    return [Fact("test accuracy", text, data), Fact("before adaptation", format_share(before))]


def _list_independent(results: Mapping[tuple[str, int], Interval], last: int, classifies: bool) -> list[Fact]:
    """What a test has measured where each query is answered by itself, and how much that is more than in company."""
    kind, name = ("acc", "accuracy") if classifies else ("loss", "loss")
    if (f"{kind}_independent", last) not in results:
        return []
    alone, gap = results[f"{kind}_independent", last], results[f"{kind}_difference", last]
    unit, scale, digits = ("points ", 100, 2) if classifies else ("", 1, 4)
    size = f"{scale * abs(gap.mean):.{digits}f}" + (f" ± {scale * gap.ci95:.{digits}f}" if gap.tasks > 1 else "")
    value = (format_share if classifies else format_loss)(alone)
    text = f"{value}, each query alone: {size} {unit}{'more' if gap.mean > 0 else 'less'}"
    data = {"test": {f"{name}_independent": as_data(alone), f"{name}_difference": as_data(gap)}}
    return [Fact("independent", text, data)]


def _list_losses(results: Mapping[tuple[str, int], Interval], last: int) -> list[Fact]:
    facts = []
    for step in sorted({0, 1, last}):
        loss = results["loss", step]
        data = as_result("test", "loss", loss) if step == last else {"test": {}}
        data["test"]["loss_by_inner_steps"] = {str(step): as_data(loss)}
        text = format_loss(loss) + (f"  {describe_interval(loss)}" if step == last else "")
        facts.append(Fact(f"test loss, {step} step{'s' * (step != 1)}", text, data))
    return facts


def _list_measures(results: Mapping[tuple[str, int], Interval], last: int, loss: Any) -> list[Fact]:
    """The further metrics of a test, in a line or two."""
    values = {name: interval for (name, _), interval in results.items() if not name.startswith(("acc", "loss"))}
    data = {"test": {name: as_data(interval) for name, interval in values.items()}}
    shares = {name: f"{100 * interval.mean:.1f} %" for name, interval in values.items()}
    if "macro_f1" in values and "calibration_error" in values:
        text = f"{shares['macro_f1']}; calibration error {shares['calibration_error']}"
        return [Fact("macro F1", text, data)]
    if "exact_match" in values:
        text = f"{shares['exact_match']}; F1 micro {shares.get('f1_micro')}, macro {shares.get('f1_macro')}; average precision "
        return [Fact("exact match", text + str(shares.get("average_precision")), data)]
    facts = []
    if "rmse" in values:
        mae = f"; mean absolute error {values['mae'].mean:.4g}" if "mae" in values else ""
        facts.append(Fact("RMSE", f"{format_loss(values['rmse'])}{mae}", data))
    if "coverage" in values and isinstance(loss, BandLoss):
        text = f"{format_share(values['coverage'])} of the targets, for a band of {100 * loss.share:.4g} %"
        facts.append(Fact("coverage", text, {"test": {"nominal_coverage": loss.share}}))
    return facts
