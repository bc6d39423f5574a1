"""What the command line does, says and draws when a subcommand has ended, whatever module has run."""

from __future__ import annotations

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
from metalearn.reports.gallery import Gallery
from metalearn.reports.outcome import Facts, RunRecord
from metalearn.reports.own_facts import collect_facts
from metalearn.reports.summary import print_summary
from metalearn.reports.tables import read_csv

__all__ = ["FinishedRun", "after_fit", "after_predict", "after_test", "after_validate"]


@dataclass(frozen=True)
class FinishedRun:
    """A subcommand that has ended.

    Attributes:
        name: of the run.
        trainer: that ran it.
        model: a module that is a :class:`~metalearn.reports.outcome.ReportsOutcome`.
        data: the data module, if there is one.
        clock: has measured a training.
        tasks: has written the table of test tasks, if the module has one.
        predictions: has written the table of predictions, if there are any.
        test_after_fit: whether the user wants a test after training.
    """

    name: str
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
    def lacks_test(self) -> bool:
        """Whether the data have no loader to test with."""
        return self.data is not None and not is_overridden("test_dataloader", self.data)

    @property
    def tests_after_fit(self) -> bool:
        """Whether the training ends with a test."""
        has_classes = getattr(self.data, "has_classes", lambda split: True)
        can_test = self.data is not None and not self.lacks_test and has_classes("test")
        return bool(self.test_after_fit and can_test and self.trainer.limit_test_batches != 0)


def after_fit(run: FinishedRun) -> None:
    """Test the best checkpoint, draw the pictures, print the summary."""
    best = find_best_checkpoint(run.trainer)
    steps = run.trainer.global_step
    # of the whole training: the best checkpoint knows what it had cost until then
    cost = collect_facts(run.model, "fit")
    tests = run.tests_after_fit
    if tests:
        if best is not None:
            load_weights(run.model, best)
        run.trainer.test(run.model, datamodule=run.data, verbose=False)
    where = run.folder
    if not run.trainer.is_global_zero:
        return
    facts: Facts = []
    if tests:
        facts += collect_facts(run.model, "test")
    elif run.lacks_test:
        facts.append(("test", "none: the data has no test_dataloader"))
    saved = best or find_last_checkpoint(run.trainer)
    facts += [*list_training_facts(run, steps), *cost, describe_checkpoint(best, saved)]
    facts += list_files(run, where, trained=True, tested=tests)
    print_summary(run.name, facts, list_next_commands(run, saved))


def after_test(run: FinishedRun) -> None:
    """Print the test's metrics and where its files are."""
    where = run.folder
    if run.trainer.is_global_zero:
        facts = [*collect_facts(run.model, "test"), *list_files(run, where, trained=False, tested=True)]
        print_summary(f"test: {run.name}", facts)


def after_validate(run: FinishedRun) -> None:
    """Print the validation metrics."""
    if run.trainer.is_global_zero:
        metrics = run.trainer.callback_metrics
        names: list[str] = [name for name in ("val/acc", "val/loss") if name in metrics]
        names = names or list(metrics)
        facts = [(name, f"{float(metrics[name]):.4f}") for name in names]
        print_summary(f"validate: {run.name}", facts)


def after_predict(run: FinishedRun) -> None:
    """Say where the predictions are."""
    if run.trainer.is_global_zero and run.predictions.path is not None:
        print_summary(f"predict: {run.name}", [("probabilities", str(run.predictions.path))])


def find_best_checkpoint(trainer: Any) -> Path | None:
    """The one with the best monitored value, if a validation has been."""
    savers = [saver for saver in trainer.callbacks if isinstance(saver, ModelCheckpoint) and saver.monitor]
    return Path(savers[0].best_model_path) if savers and savers[0].best_model_path else None


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


def describe_checkpoint(best: Path | None, saved: Path | None) -> tuple[str, str]:
    """Which state the run is known by."""
    if best is None and saved is not None:
        return "checkpoint", f"{saved} (the last state: no validation has chosen a better one)"
    return "checkpoint", str(saved or "none: nothing was trained, or saving is turned off")


def list_training_facts(run: FinishedRun, steps: int) -> Facts:
    """How long training took; or why there was none."""
    clock, trainer = run.clock, run.trainer
    if clock.batches == 0:
        end = f"max_steps {trainer.max_steps}" if trainer.max_steps >= 0 else f"max_epochs {trainer.max_epochs}"
        reason = (
            f"step {steps} is at the end that {end} sets; raise it to train on" if steps else "no batch was asked for"
        )
        return [("training", f"nothing was left to train: {reason}")]
    facts = [("training", f"{steps} steps in {clock.seconds:.0f} s ({clock.training:.0f} s without validation)")]
    return facts + ([("speed", f"{clock.tasks / max(clock.training, 1e-9):.1f} tasks/s")] if clock.tasks else [])


def list_files(run: FinishedRun, where: Path, trained: bool, tested: bool) -> Facts:
    """The tables and pictures of a run, which are drawn here; and which picture could not be drawn, and why."""
    facts: Facts = []
    metrics = where / "metrics.csv"
    is_logged = isinstance(run.trainer.logger, CSVLogger) and metrics.is_file()
    if trained and is_logged:
        facts.append(("metrics", str(metrics)))
    if tested and run.tasks.path is not None:
        facts.append(("per-task results", str(run.tasks.path)))
    rows = read_csv(metrics) if trained and is_logged else []
    record = RunRecord(run.name, run.data, tested, rows)
    return [*facts, *Gallery(where).draw(lambda: run.model.pictures(record))]


def list_next_commands(run: FinishedRun, saved: Path | None) -> list[tuple[str, str]]:
    """What can be done with the checkpoint of a training."""
    if saved is None or run.lacks_test:
        return []
    commands = [("Evaluate it again", format_evaluation(saved))]
    if getattr(run.model, "image_spec", None) is not None and is_self_contained(saved):
        predict = f"python -m metalearn predict --ckpt_path {quote(str(saved))} --support SUPPORT --query QUERIES"
        commands.append(("Adapt it to your own images (a sub-folder per class in SUPPORT)", predict))
    return commands
