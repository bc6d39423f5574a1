"""The trials of ``metalearn sweep``: tried before they run, run, and reported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalearn.cli.many_runs import choose_folder, make_processes, prepare, print_json, read_monitor, read_steps
from metalearn.cli.rehearsal import Rehearsal, rehearse
from metalearn.cli.repeated_options import Request
from metalearn.errors import MetalearnError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Ended, Job, Processes
from metalearn.experiments.plan import claim
from metalearn.experiments.seeds import choose_measure
from metalearn.experiments.space import Setting, list_combinations
from metalearn.experiments.sweep import Outcome, Sweep
from metalearn.experiments.sweep_files import draw_slices, write_best, write_trials
from metalearn.experiments.training import Training, format_measure
from metalearn.reports.summary import print_summary

__all__ = ["run_sweep"]

SHOWN = 10
"""Trials in the printed table."""


def run_sweep(request: Request, settings: Sequence[Setting], trials: int) -> None:
    """Run all trials, several at a time, and print and write what they have come to.

    Args:
        request: what the user asks.
        settings: what is tried.
        trials: how many there are, where an option has a range.

    Raises:
        MetalearnError: an option or the data is wrong, or no trial has ended well.
    """
    rehearsal = prepare(request)
    _try_values(request, settings)
    folder = choose_folder(request, rehearsal, "sweep")
    combinations = list_combinations(settings)
    count = trials if combinations is None else len(combinations)
    processes = make_processes(request, rehearsal, Board("", 0, quiet=True), count)
    plan = {**rehearsal.options, "set": {setting.name: str(setting) for setting in settings}}
    with claim(folder, "sweep", plan):
        sweep = _open(request, rehearsal, settings, folder)
        total = sweep.enqueue(trials)
        board = Board(f"sweep of {rehearsal.name}", total, sweep.count_done(), request.options.quiet)
        sweep.run(Processes(processes.count, board, processes.devices), total)
        best = sweep.best()
        table = write_trials(folder / "trials.csv", sweep.outcomes(), settings, read_monitor(rehearsal)[0])
        if best is None:
            raise MetalearnError(
                f"none of the {total} trials has ended well; {table} lists them, and each has its output.log beside it"
            )
        if request.options.test and not best.training.tests():
            _test(best.training, request.options.quiet)
        _report(request, rehearsal, sweep, best, folder)


def _try_values(request: Request, settings: Sequence[Setting]) -> None:
    """Build the training with every value once, so that a wrong one is named before anything runs."""
    for values in zip_longest(*(setting.samples for setting in settings)):
        pairs = zip(settings, values, strict=True)
        rehearse([*request.fit, *(f"--{setting.name}={value}" for setting, value in pairs if value is not None)])


def _open(request: Request, rehearsal: Rehearsal, settings: Sequence[Setting], folder: Path) -> Sweep:
    monitor, direction = read_monitor(rehearsal)
    steps = read_steps(rehearsal)

    def make_training(name: str, values: dict[str, str]) -> Training:
        options = [*request.fit, *(f"--{option}={value}" for option, value in values.items()), "--test_after_fit=false"]
        most = int(values["trainer.max_steps"]) if "trainer.max_steps" in values else steps
        return Training(name.replace("_", " "), folder / name, options, monitor, most)

    warmup = None if request.options.no_pruning else (steps or 0) // 3
    return Sweep(folder, settings, make_training, direction, warmup)


def _test(training: Training, quiet: bool) -> None:
    """Test a training's best checkpoint, in its run's folder."""
    assert training.run is not None
    words = ["test", "--config", str(training.run / "config.yaml"), "--ckpt_path", str(training.checkpoint)]
    job = Job(f"test of {training.name}", [sys.executable, "-m", "metalearn", *words], training.home, training.look)

    def end(ended: Ended) -> str:
        return f"{ended.job.name}: done, {ended.seconds:.0f} s"

    if Processes(1, Board("test of the best", 1, quiet=quiet)).run([job], end):
        raise MetalearnError(
            f"the best trial could not be tested; {job.log} says why, and the same command tries again"
        )


def _report(request: Request, rehearsal: Rehearsal, sweep: Sweep, best: Outcome, folder: Path) -> None:
    """Write the picture and the best configuration, and print the result."""
    outcomes = sweep.outcomes()
    tests = bool(rehearsal.options.get("test_after_fit", True))
    config = write_best(folder / "best.yaml", best, f"{rehearsal.name}_best", tests)
    picture = draw_slices(folder / "sweep.png", outcomes, sweep.settings, best, rehearsal.name)
    files = {"best configuration": config, "table": folder / "trials.csv", "picture": picture}
    if request.options.json:
        print_json(_as_dict(rehearsal, sweep, best, files))
        return
    _print_trials(sweep, best.training.monitor)
    facts = [
        (
            f"best {best.training.monitor}",
            f"{format_measure(best.training.monitor, best.value or 0.0)}  ({_count(outcomes)})",
        )
    ]
    facts += [(name, value) for name, value in best.values.items()]
    measured = best.training.tests()
    name = choose_measure(list(measured), best.training.monitor)
    if name is not None:
        width = measured.get(f"{name}_ci95", float("nan"))
        facts.append((name, f"{format_measure(name, measured[name], width)}  (95 % interval over its test tasks)"))
    facts += [("checkpoint", str(best.training.checkpoint)), *((label, str(path)) for label, path in files.items())]
    commands = [("Train the best again", shlex.join(["metalearn", "fit", "--config", str(config)]))]
    if name is None:
        words = ["metalearn", "test", "--config", str(config), "--ckpt_path", str(best.training.checkpoint)]
        commands.append(("Test its checkpoint; no test has been looked at until now", shlex.join(words)))
    print_summary(f"sweep of {rehearsal.name}", facts, commands)


def _rank(sweep: Sweep) -> list[Outcome]:
    """The best first, then those that were pruned, then those without a value."""
    sign = -1 if sweep.direction == "max" else 1

    def place(outcome: Outcome) -> tuple[bool, bool, float]:
        return outcome.state != "complete", outcome.value is None, sign * (outcome.value or 0.0)

    return sorted(sweep.outcomes(), key=place)


def _print_trials(sweep: Sweep, monitor: str) -> None:
    """The best trials as a table."""
    names = [setting.name for setting in sweep.settings]
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for title in ("trial", *names):
        table.add_column(Text(title), overflow="fold")
    table.add_column(Text(monitor), justify="right", no_wrap=True)
    table.add_column("")
    ranked = _rank(sweep)
    for outcome in ranked[:SHOWN]:
        value = "" if outcome.value is None else format_measure(monitor, outcome.value)
        cells = [
            outcome.training.home.name.removeprefix("trial_"),
            *(outcome.values.get(name, "") for name in names),
            value,
        ]
        table.add_row(*map(Text, cells), "" if outcome.state == "complete" else outcome.state)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    if len(ranked) > SHOWN:
        console.print(f"  and {len(ranked) - SHOWN} more in trials.csv")


def _count(outcomes: Sequence[Outcome]) -> str:
    """Such as ``"the best of 9 trials, 2 pruned, 1 failed"``."""
    states = [outcome.state for outcome in outcomes]
    others = [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
    return ", ".join([f"the best of {len(states)} trials", *others])


def _as_dict(rehearsal: Rehearsal, sweep: Sweep, best: Outcome, files: dict[str, Path]) -> dict[str, Any]:
    def describe(outcome: Outcome) -> dict[str, Any]:
        training = outcome.training
        return {"trial": training.home.name, "state": outcome.state, "value": outcome.value, "set": outcome.values,
                "steps": training.count_steps(), "seconds": training.seconds,
                "run": str(training.run) if training.run else None}  # fmt: skip

    measured = {name: value for name, value in best.training.tests().items() if value == value}
    return {
        "kind": "sweep", "config": rehearsal.name, "monitor": best.training.monitor, "direction": sweep.direction,
        "best": {**describe(best), "checkpoint": str(best.training.checkpoint), "test": measured or None},
        "trials": [describe(outcome) for outcome in sweep.outcomes()],
        "files": {name: str(path) for name, path in files.items()},
    }  # fmt: skip
