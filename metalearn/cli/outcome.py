"""What the command line does, says and draws when a subcommand has ended, whatever module has run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from metalearn.carried import read_checkpoint
from metalearn.cli.run_files import format_evaluation, is_self_contained
from metalearn.modules.callbacks.clock import RunClock
from metalearn.modules.callbacks.run_folder import find_run_folder
from metalearn.modules.callbacks.saving import LastCheckpoint
from metalearn.modules.callbacks.tables import PredictionTable, TaskTable
from metalearn.reports.facts import as_data, as_result
from metalearn.reports.gallery import Gallery
from metalearn.reports.outcome import Fact, ReportsOutcome, RunRecord
from metalearn.reports.own_facts import collect_facts
from metalearn.reports.summary import Summary
from metalearn.reports.tables import read_csv

__all__ = ["FinishedRun", "after_fit", "after_predict", "after_test", "after_try", "after_validate"]


MEASURES = {"acc": "accuracy", "loss": "loss"}
"""How data call what our modules log."""


@dataclass(frozen=True)
class FinishedRun:
    """A subcommand that has ended.

    Attributes:
        command: the subcommand.
        name: of the run.
        config: the name of its configuration; ``"custom"`` without one.
        trainer: that ran it.
        model: any module; one that is a :class:`~metalearn.reports.outcome.ReportsOutcome` joins the summary.
        data: the data module, if there is one.
        clock: has measured a training.
        tasks: has written the table of test tasks, if the module has one.
        predictions: has written the table of predictions, if there are any.
        test_after_fit: whether the user wants a test after training.
    """

    command: str
    name: str
    config: str
    trainer: L.Trainer
    model: Any
    data: Any
    clock: RunClock
    tasks: TaskTable
    predictions: PredictionTable
    test_after_fit: bool = True

    @property
    def folder(self) -> Path:
        """Where the run writes; all ranks must ask."""
        return find_run_folder(self.trainer)

    @property
    def speakers(self) -> list[Any]:
        """What may join the summary: the module, then the callbacks of the Trainer."""
        trainer: Any = self.trainer
        return [self.model, *trainer.callbacks]

    @property
    def lacks_test(self) -> bool:
        """Whether the data have no loader to test with."""
        return self.data is not None and not is_overridden("test_dataloader", self.data)

    @property
    def tests_after_fit(self) -> bool:
        """Whether the training ends with a test."""
        has_classes = getattr(self.data, "has_classes", lambda split: True)
        can_test = self.data is not None and not self.lacks_test and has_classes("test")
        reports = isinstance(self.model, ReportsOutcome)
        return bool(self.test_after_fit and reports and can_test and self.trainer.limit_test_batches != 0)

    def describe(self, where: Path) -> dict[str, Any]:
        """What a summary says of the run for programs alone.

        Args:
            where: the run's folder.
        """
        return {
            "command": self.command,
            "name": self.name,
            "config": self.config,
            "module": type(self.model).__name__,
            "data": None if self.data is None else type(self.data).__name__,
            "folder": str(where),
            "logged": {name: float(value) for name, value in self.trainer.callback_metrics.items()},
        }


def after_fit(run: FinishedRun) -> Summary | None:
    """Test the best checkpoint, draw the pictures, and return the summary, on the first rank."""
    best = find_best_checkpoint(run.trainer)
    steps = run.trainer.global_step
    # of the whole training: the best checkpoint knows what it had cost until then
    cost = [fact for part in run.speakers for fact in collect_facts(part, "fit")]
    tests = run.tests_after_fit
    if tests:
        if best is not None:
            load_weights(run.model, best)
        run.trainer.test(run.model, datamodule=run.data, verbose=False)
    where = run.folder
    if not run.trainer.is_global_zero:
        return None
    facts: list[Fact] = []
    if tests:
        facts += collect_facts(run.model, "test")
    elif run.lacks_test:
        text = "none: the data has no test_dataloader"
        facts.append(Fact("test", text, {"notes": [f"test: {text}"]}))
    saved = best or find_last_checkpoint(run.trainer)
    facts += [*list_training_facts(run, steps), *cost, describe_checkpoint(best, saved, find_best_value(run.trainer))]
    facts += list_files(run, where, trained=True, tested=tests)
    return Summary(run.name, facts, list_next_commands(run, saved), run.describe(where))


def after_try(run: FinishedRun) -> Summary | None:
    """Return what is known after ``fast_dev_run``, which saves and draws nothing."""
    where = run.folder
    return Summary(run.name, [], data=run.describe(where)) if run.trainer.is_global_zero else None


def after_test(run: FinishedRun) -> Summary | None:
    """Return the test's metrics and where its files are, on the first rank."""
    where = run.folder
    if not run.trainer.is_global_zero:
        return None
    facts = collect_facts(run.model, "test") or list_logged(run.trainer.callback_metrics)
    facts += list_files(run, where, trained=False, tested=True)
    return Summary(f"test: {run.name}", facts, data=run.describe(where))


def after_validate(run: FinishedRun) -> Summary | None:
    """Return the validation metrics, on the first rank."""
    where = run.folder
    if not run.trainer.is_global_zero:
        return None
    metrics = run.trainer.callback_metrics
    ours: dict[str, Any] = {name: metrics[name] for name in ("val/acc", "val/loss") if name in metrics}
    return Summary(f"validate: {run.name}", list_logged(ours or metrics), data=run.describe(where))


def after_predict(run: FinishedRun) -> Summary | None:
    """Say where the predictions are, on the first rank."""
    where = run.folder
    if not run.trainer.is_global_zero:
        return None
    path = run.predictions.path
    name = "probabilities" if getattr(run.model, "classifies", True) else "predictions"
    facts: list[Fact] = [] if path is None else [Fact(name, str(path), {"predictions": str(path)})]
    return Summary(f"predict: {run.name}", facts, data=run.describe(where))


def list_logged(metrics: Mapping[str, Any]) -> list[Fact]:
    """A line for each metric that a module has logged; the first is the result where it is an accuracy or a loss."""
    facts: list[Fact] = []
    for name, value in metrics.items():
        stage, _, measure = name.partition("/")
        stage, measure = {"val": "validation"}.get(stage, stage), MEASURES.get(measure, "")
        data: dict[str, Any] = {}
        if stage in ("test", "validation") and measure:
            data = {stage: {measure: as_data(float(value))}} if facts else as_result(stage, measure, float(value))
        facts.append(Fact(name, f"{float(value):.4f}", data))
    return facts


def find_best_checkpoint(trainer: Any) -> Path | None:
    """The one with the best monitored value, if a validation has been."""
    savers = [saver for saver in trainer.callbacks if isinstance(saver, ModelCheckpoint) and saver.monitor]
    return Path(savers[0].best_model_path) if savers and savers[0].best_model_path else None


def find_best_value(trainer: Any) -> dict[str, Any]:
    """The best monitored value so far as data; nothing without a validation."""
    savers = [saver for saver in trainer.callbacks if isinstance(saver, ModelCheckpoint) and saver.monitor]
    if not savers or savers[0].best_model_score is None:
        return {}
    return {"best": {"monitor": savers[0].monitor, "mode": savers[0].mode, "value": float(savers[0].best_model_score)}}


def find_last_checkpoint(trainer: Any) -> Path | None:
    """The last state, if it was saved."""
    savers = [saver for saver in trainer.callbacks if isinstance(saver, LastCheckpoint)]
    path = savers[0].path if savers else None
    return path if path is not None and path.is_file() else None


def load_weights(model: L.LightningModule, path: Path) -> None:
    """Put the state of a checkpoint into a module.

    ``trainer.test(ckpt_path=...)`` would put back the raw weights of a run that has averaged them.
    """
    checkpoint = read_checkpoint(path)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)


def describe_checkpoint(best: Path | None, saved: Path | None, value: Mapping[str, Any]) -> Fact:
    """Which state the run is known by.

    Args:
        best: the best checkpoint, if a validation has chosen one.
        saved: that, or the last state.
        value: what the validation has measured, as data.
    """
    text = str(saved or "none: nothing was trained, or saving is turned off")
    if best is None and saved is not None:
        text += " (the last state: no validation has chosen a better one)"
    data = {"checkpoint": None if saved is None else str(saved), "validation": dict(value)}
    return Fact("checkpoint", text, data)


def list_training_facts(run: FinishedRun, steps: int) -> list[Fact]:
    """How long training took; or why there was none."""
    clock, trainer = run.clock, run.trainer
    data: dict[str, Any] = {
        "steps": steps,
        "seconds": clock.seconds,
        "seconds_without_validation": clock.training,
        "cpu_seconds": clock.cpu,
        "seconds_with_earlier_parts": clock.earlier["seconds"] + clock.seconds,
        "cpu_seconds_with_earlier_parts": clock.earlier["cpu"] + clock.cpu,
        "tasks": clock.tasks,
        "tasks_per_second": None,
    }
    if clock.batches == 0:
        end = f"max_steps {trainer.max_steps}" if trainer.max_steps >= 0 else f"max_epochs {trainer.max_epochs}"
        reason = (
            f"step {steps} is at the end that {end} sets; raise it to train on" if steps else "no batch was asked for"
        )
        text = f"nothing was left to train: {reason}"
        return [Fact("training", text, {"training": data, "notes": [text]})]
    text = f"{steps} steps in {clock.seconds:.0f} s ({clock.training:.0f} s without validation, {clock.cpu:.0f} s of CPU time)"
    if clock.earlier["seconds"]:
        text += f"; {data['cpu_seconds_with_earlier_parts']:.0f} s of CPU time with the parts before"
    facts = [Fact("training", text, {"training": data})]
    if clock.tasks:
        speed = clock.tasks / max(clock.training, 1e-9)
        facts.append(Fact("speed", f"{speed:.1f} tasks/s", {"training": {"tasks_per_second": speed}}))
    return facts


def list_files(run: FinishedRun, where: Path, trained: bool, tested: bool) -> list[Fact]:
    """The tables and pictures of a run, which are drawn here; and which picture could not be drawn, and why."""
    facts: list[Fact] = []
    metrics = where / "metrics.csv"
    is_logged = isinstance(run.trainer.logger, CSVLogger) and metrics.is_file()
    if trained and is_logged:
        facts.append(Fact("metrics", str(metrics), {"metrics": str(metrics)}))
    if tested and run.tasks.path is not None:
        facts.append(Fact("per-task results", str(run.tasks.path), {"test_tasks": str(run.tasks.path)}))
    if tested and run.tasks.classes is not None:
        path = str(run.tasks.classes)
        facts.append(Fact("per-class results", path, {run.tasks.classes.stem: path}))
    speakers = run.speakers if trained else [run.model]
    parts = [part for part in speakers if isinstance(part, ReportsOutcome)]
    rows = read_csv(metrics) if trained and is_logged else []
    record = RunRecord(run.name, run.data, tested, rows)
    return [*facts, *Gallery(where).draw(lambda: [picture for part in parts for picture in part.pictures(record)])]


def list_next_commands(run: FinishedRun, saved: Path | None) -> list[Fact]:
    """What can be done with the checkpoint of a training."""
    if saved is None or run.lacks_test:
        return []
    evaluation = format_evaluation(saved)
    commands = [Fact("Evaluate it again", evaluation, {"next": {"test": evaluation}})]
    if getattr(run.model, "image_spec", None) is not None and is_self_contained(saved):
        predict = f"python -m metalearn predict --ckpt_path {quote(str(saved))} --support SUPPORT --query QUERIES"
        name = "Adapt it to your own images (a sub-folder per class in SUPPORT)"
        commands.append(Fact(name, predict, {"next": {"predict": predict}}))
    return commands
