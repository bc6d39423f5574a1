"""The trainings of ``metalearn seeds``: what a seed sets, what is run, and what is said of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.cli.many_runs import choose_folder, make_processes, prepare, read_monitor, read_steps
from metalearn.cli.rehearsal import Rehearsal
from metalearn.cli.repeated_options import Request
from metalearn.datamodules.levels.base import BilevelDataModule
from metalearn.errors import ConfigError, MetalearnError
from metalearn.experiments.board import Board
from metalearn.experiments.plan import claim
from metalearn.experiments.seed_pictures import draw_seeds
from metalearn.experiments.seeds import SeedRuns, choose_measure
from metalearn.experiments.training import Training, format_measure
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Report, Summary

__all__ = ["run_seeds"]


def run_seeds(request: Request, seeds: Sequence[int]) -> Report:
    """Train and test from every seed, several at a time, and write what they come to.

    Raises:
        MetalearnError: an option or the data is wrong, or a training has failed.
    """
    rehearsal = prepare(request.fit)
    folder = choose_folder(request, rehearsal, "seeds")
    names = list_seed_options(rehearsal)
    check_free(names, request)
    runs = SeedRuns(folder, {seed: _make_training(seed, folder, names, request.fit, rehearsal) for seed in seeds})
    board = Board(f"seeds of {rehearsal.name}", len(seeds), len(runs.finished))
    # as many as when nothing was done: a training that goes on has the threads it had, and so the same sums
    processes = make_processes(request, rehearsal, board, len(seeds))
    with claim(folder, "seeds", rehearsal.options):
        failures = runs.run(processes)
        report = _report(runs, rehearsal)
    if failures:
        report.show()
        raise MetalearnError(
            f"{failures} of {len(seeds)} seeds failed, and the result is of the others; mend what their output.log in {folder} "
            "says, and repeat the command: it runs what is missing"
        )
    return report


def list_seed_options(rehearsal: Rehearsal) -> list[str]:
    """The options of ``fit`` that a seed sets: what varies between runs, and not what they are tested on."""
    names = ["seed_everything"]
    if _takes(rehearsal.data, "train_seed"):
        names.append("data.train_seed")
    elif isinstance(rehearsal.data, BilevelDataModule) and _takes(rehearsal.data, "seed"):
        names.append("data.seed")  # of the training batches alone
    if _takes(rehearsal.model, "seed"):
        names.append("model.seed")
    return names


def check_free(names: Sequence[str], request: Request) -> None:
    """Raise where an option that the seeds set is set beside them."""
    for name in names:
        if name in request.set_names:
            raise ConfigError(
                f"option --{name} is set by every seed; leave it out, and name the seeds by --seeds 3,7,11"
            )


def _takes(owner: Any, name: str) -> bool:
    return name in inspect.signature(type(owner).__init__).parameters


def _make_training(seed: int, folder: Path, names: Sequence[str], fit: Sequence[str], rehearsal: Rehearsal) -> Training:
    options = [*fit, *(f"--{name}={seed}" for name in names)]
    monitor, _ = read_monitor(rehearsal)
    return Training(f"seed {seed}", folder / f"seed_{seed}", options, monitor, read_steps(rehearsal))


def _report(runs: SeedRuns, rehearsal: Rehearsal) -> Report:
    """Write table and picture, and sum up the result."""
    measures = runs.measures()
    monitor, _ = read_monitor(rehearsal)
    main = choose_measure(list(measures), monitor)
    files = {"table": runs.write()}
    if main is not None:
        files["picture"] = draw_seeds(runs.folder / "seeds.png", runs, main, rehearsal.name)
    facts = [fact for name in measures for fact in _describe(runs, name, name == main)]
    data = {"command": "seeds", "config": rehearsal.name, "measure": main, **runs.as_dict(), "files": files}
    places = [Fact(name, str(path)) for name, path in files.items()]
    return Summary(f"seeds of {rehearsal.name}", [*facts, *places], data=data)


def _describe(runs: SeedRuns, name: str, is_main: bool) -> list[Fact]:
    """Lines of the summary on one measure: all of the main one, the first of the others."""
    mean, std, ci95, number = runs.measures()[name]
    over = (
        f"(95 % interval of the mean over {number} seeds, Student's t)" if number > 1 else "(one seed, so no interval)"
    )
    stage, _, measure = name.partition("/")
    result = {"result": {"stage": stage, "measure": measure, **runs.describe(name)}} if is_main else {}
    lines = [Fact(name, f"{format_measure(name, mean, ci95)}  {over}", result)]
    if is_main and number > 1:
        lines.append(Fact("between seeds", f"{_format_width(name, std)}  (standard deviation)"))
    within = runs.within(name)
    if is_main and math.isfinite(within):
        text = f"± {_format_width(name, within)}  (95 % interval over its test tasks, mean of the seeds)"
        lines.append(Fact("within a run", text))
    return lines


def _format_width(name: str, width: float) -> str:
    return f"{100 * width:.2f}" if name.endswith("acc") else f"{width:.2g}"
