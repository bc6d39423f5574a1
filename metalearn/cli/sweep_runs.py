"""The trials of ``metalearn sweep``: tried before they run, run, and reported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from metalearn.cli.many_runs import choose_folder, make_processes, prepare, read_monitor, read_steps
from metalearn.cli.rehearsal import Rehearsal
from metalearn.cli.repeated_options import Request
from metalearn.cli.sweep_report import SweepReport
from metalearn.errors import MetalearnError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Ended, Job, Processes
from metalearn.experiments.plan import claim
from metalearn.experiments.space import Setting, list_combinations
from metalearn.experiments.sweep import Outcome, Sweep
from metalearn.experiments.sweep_files import draw_slices, write_best, write_trials
from metalearn.experiments.training import Training
from metalearn.reports.summary import Report

__all__ = ["run_sweep"]


def run_sweep(request: Request, settings: Sequence[Setting], trials: int) -> Report:
    """Run all trials, several at a time, and write what they have come to.

    Args:
        request: what the user asks.
        settings: what is tried.
        trials: how many there are, where an option has a range.

    Raises:
        MetalearnError: an option or the data is wrong, or no trial has ended well.
    """
    rehearsal = prepare(request.fit)
    _try_values(request, settings)
    folder = choose_folder(request, rehearsal, "sweep")
    combinations = list_combinations(settings)
    count = trials if combinations is None else len(combinations)
    processes = make_processes(request, rehearsal, Board("", 0), count)
    plan = {**rehearsal.options, "set": {setting.name: str(setting) for setting in settings}}
    with claim(folder, "sweep", plan):
        sweep = _open(request, rehearsal, settings, folder)
        total = sweep.enqueue(trials)
        board = Board(f"sweep of {rehearsal.name}", total, sweep.count_done())
        sweep.run(Processes(processes.count, board, processes.devices), total)
        best = sweep.best()
        table = write_trials(folder / "trials.csv", sweep.outcomes(), settings, read_monitor(rehearsal)[0])
        if best is None:
            raise MetalearnError(
                f"none of the {total} trials has ended well; {table} lists them, and each has its output.log beside it"
            )
        if request.options.test and not best.training.tests():
            _test(best.training)
        return _report(rehearsal, sweep, best, folder)


def _try_values(request: Request, settings: Sequence[Setting]) -> None:
    """Build the training with every value once, so that a wrong one is named before anything runs."""
    for values in zip_longest(*(setting.samples for setting in settings)):
        pairs = zip(settings, values, strict=True)
        prepare([*request.fit, *(f"--{setting.name}={value}" for setting, value in pairs if value is not None)])


def _open(request: Request, rehearsal: Rehearsal, settings: Sequence[Setting], folder: Path) -> Sweep:
    monitor, direction = read_monitor(rehearsal)
    steps = read_steps(rehearsal)

    def make_training(name: str, values: dict[str, str]) -> Training:
        options = [*request.fit, *(f"--{option}={value}" for option, value in values.items()), "--test_after_fit=false"]
        most = int(values["trainer.max_steps"]) if "trainer.max_steps" in values else steps
        return Training(name.replace("_", " "), folder / name, options, monitor, most)

    warmup = None if request.options.no_pruning else (steps or 0) // 3
    return Sweep(folder, settings, make_training, direction, warmup)


def _test(training: Training) -> None:
    """Test a training's best checkpoint, in its run's folder."""
    assert training.run is not None
    words = ["test", "--config", str(training.run / "config.yaml"), "--ckpt_path", str(training.checkpoint)]
    job = Job(f"test of {training.name}", [sys.executable, "-m", "metalearn", *words], training.home, training.look)

    def end(ended: Ended) -> str:
        return f"{ended.job.name}: done, {ended.seconds:.0f} s"

    if Processes(1, Board("test of the best", 1)).run([job], end):
        raise MetalearnError(
            f"the best trial could not be tested; {job.log} says why, and the same command tries again"
        )


def _report(rehearsal: Rehearsal, sweep: Sweep, best: Outcome, folder: Path) -> Report:
    """Write the picture and the best configuration."""
    outcomes = sweep.outcomes()
    tests = bool(rehearsal.options.get("test_after_fit", True))
    config = write_best(folder / "best.yaml", best, f"{rehearsal.name}_best", tests)
    picture = draw_slices(folder / "sweep.png", outcomes, sweep.settings, best, rehearsal.name)
    files = {"best configuration": config, "table": folder / "trials.csv", "picture": picture}
    return SweepReport(
        rehearsal.name, sweep.direction, [setting.name for setting in sweep.settings], outcomes, best, files
    )
