"""Few-shot tasks: ITD-BiO and AID-BiO beside ANIL at equal seconds (arXiv 2108.00330, section 2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from metalearn.backbones import Conv4
from metalearn.checks import check_number, check_whole
from metalearn.datamodules import ImageEpisodes
from metalearn.errors import ConfigError
from metalearn.modules import ANIL, BilevelFewShot, MetaModule
from metalearn.progress import Progress
from metalearn.studies.curves import Trace, draw_bands
from metalearn.studies.few_shot_runs import SETTINGS, Run, Setting
from metalearn.studies.results import (
    PointsFile,
    format_spread,
    mean_of,
    print_gain,
    print_rows,
    run_named,
    say_execution_once,
)

__all__ = ["METHODS", "study_few_shot"]

METHODS = ("ANIL", "ITD-BiO", "AID-BiO")


def study_few_shot(
    output: str,
    omniglot: str | None = None,
    miniimagenet: str | None = None,
    seeds: int = 5,
    seconds: float = 60.0,
    marks: int = 6,
    tasks: int = 20,
    inner_steps: int = 10,
    inner_lr: float | None = None,
    l2: float = 0.01,
    linear_steps: int = 10,
    outer_lr: float = 0.002,
) -> list[Path]:
    """Train the three methods for equal seconds, print a table for each data set, write ``few_shot.csv`` and pictures.

    Every method trains the same network, from the same weights, on the same tasks, by Adam with the same learning rate. All
    take the same number of inner steps of the same size from a head at zero. At each mark they are tested on the same
    tasks. ANIL learns where its head starts, ITD-BiO and AID-BiO add ``l2 |w|^2 / 2`` to the support loss. They train in
    turns of five seconds. A seed is that of the network's initial weights and of the training tasks.

    Seconds are the process's CPU time, which other work on the machine changes less than the clock; with one thread the two are
    equal on an idle machine. The first step, which chooses how tasks are executed, and the tests count in neither seconds nor
    calls. The step during which a mark is reached is finished.

    Oracle calls are one for each task: ITD-BiO's and AID-BiO's are counted where they are made, ANIL's are those of
    :func:`anil_calls`.

    Args:
        output: where to write.
        omniglot: the folder of Omniglot's archives; what is missing is downloaded to it.
        miniimagenet: miniImageNet or data in its format, a folder or an archive.
        seeds: runs of each method.
        seconds: the seconds of training in a run.
        marks: tests of a run, evenly in seconds.
        tasks: test tasks.
        inner_steps: the inner steps of all methods, in training and test.
        inner_lr: their size; ``null`` for 1 / L of the data set: 0.2 on Omniglot, 0.01 on miniImageNet.
        l2: the penalty of the heads of ITD-BiO and AID-BiO.
        linear_steps: iterations of conjugate gradients of AID-BiO.
        outer_lr: Adam's learning rate.

    Returns:
        The files.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data cannot be read.
    """
    roots = {name: root for name, root in (("omniglot", omniglot), ("miniimagenet", miniimagenet)) if root is not None}
    if not roots:
        raise ConfigError(
            "omniglot and miniimagenet are both missing, but there must be data; use --omniglot DIR, --miniimagenet DIR "
            "or both"
        )
    plan = _Plan(seeds, seconds, marks, tasks, inner_steps, inner_lr, l2, linear_steps, outer_lr)
    for name in roots:
        for method in METHODS:
            plan.build(method, SETTINGS[name], 0)  # what is wrong with the arguments is reported before data are read
    folder, files = Path(output), []
    table = PointsFile(folder / "few_shot.csv", ["data", "method", "seed"])
    traces: dict[str, dict[str, list[Trace]]] = {}
    with say_execution_once(), Progress("runs", len(roots) * seeds * len(METHODS) * seconds) as progress:
        for name, root in roots.items():
            setting = SETTINGS[name]
            data = setting.data(root, **setting.episodes)
            data.ready()
            traces[name] = {method: [] for method in METHODS}
            for seed in range(seeds):
                for method, points in _Race(plan, setting, data, seed, progress).run().items():
                    traces[name][method].append(Trace(method, seed, points))
                    table.add((name, method, seed), points)
                table.write()
            files.append(_draw(folder / f"few_shot_{name}.png", setting.title, traces[name], plan))
    for name, runs in traces.items():
        _print(SETTINGS[name].title, runs, tasks)
    return [table.path, *files]


@dataclass(frozen=True)
class _Plan:
    """The study's arguments, see :func:`study_few_shot`."""

    seeds: int
    seconds: float
    marks: int
    tasks: int
    inner_steps: int
    inner_lr: float | None
    l2: float
    linear_steps: int
    outer_lr: float

    def __post_init__(self) -> None:
        for name, default in (("seeds", 5), ("marks", 6), ("tasks", 20)):
            check_whole(name, getattr(self, name), 1, remedy=f"use {default}")
        check_number("seconds", self.seconds, "use 60.0", above=0)
        check_number("outer_lr", self.outer_lr, "use 0.002", above=0)

    def build(self, method: str, setting: Setting, seed: int) -> MetaModule:
        """Build a method's module with the initial weights of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = Conv4(zero_head=True, **setting.network)  # type: ignore[arg-type]
        size = setting.inner_lr if self.inner_lr is None else self.inner_lr
        if method == "ANIL":
            return ANIL(network, inner_steps=self.inner_steps, inner_lr=size)
        return BilevelFewShot(
            network, estimator="itd" if method == "ITD-BiO" else "aid", inner_steps=self.inner_steps, inner_lr=size, l2=self.l2,
            linear_steps=self.linear_steps,
        )  # fmt: skip


class _Race:
    """All methods from one seed on one data set, in turns."""

    def __init__(self, plan: _Plan, setting: Setting, data: ImageEpisodes, seed: int, progress: Progress) -> None:
        self._plan, self._title, self._seed, self._progress = plan, setting.title, seed, progress
        self._runs = {}
        for method in METHODS:
            self._show(f"{method}, first step")
            with run_named(f"{method}, seed {seed}"):
                self._runs[method] = Run(plan.build(method, setting, seed), data, seed, plan.outer_lr)

    def run(self) -> dict[str, list[dict[str, float]]]:
        """Train all methods, and return the points at each mark."""
        points: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for number in range(1, self._plan.marks + 1):
            mark = self._plan.seconds * number / self._plan.marks
            while any(run.seconds < mark for run in self._runs.values()):
                self._take_turns(mark)
            for method, run in self._runs.items():
                self._show(f"{method}, test at {mark:g} s")
                points[method].append(run.point(mark, self._plan.tasks))
        return points

    def _take_turns(self, mark: float) -> None:
        for method, run in self._runs.items():
            self._show(f"{method}, to {mark:g} s")
            before = run.seconds
            with run_named(f"{method}, seed {self._seed}"):
                run.train(mark)
            self._progress.advance(run.seconds - before)

    def _show(self, what: str) -> None:
        self._progress.describe(f"{self._title}, seed {self._seed}, {what}")


def _draw(path: Path, title: str, traces: Mapping[str, Sequence[Trace]], plan: _Plan) -> Path:
    return draw_bands(
        path,
        traces,
        {"seconds": "CPU seconds of training", "calls": "oracle calls"},
        {"accuracy": "test accuracy (%)"},
        f"{title}, {plan.seeds} seeds, {plan.tasks} test tasks",
    )


def _print(title: str, traces: Mapping[str, Sequence[Trace]], tasks: int) -> None:
    """Print the table of a data set, with at most three marks and the last one among them, and what was gained over ANIL."""
    marks = [point["mark"] for point in traces["ANIL"][0].points]
    places = sorted({round(len(marks) * third / 3) - 1 for third in (1, 2, 3)} - {-1})
    seeds = len(traces["ANIL"])
    rows = []
    for method, runs in traces.items():
        accuracies = [format_spread([run.points[place]["accuracy"] for run in runs], 2) for place in places]
        last = [run.points[-1] for run in runs]
        counts = [f"{mean_of(last, key):,.0f}" for key in ("step", "gc_f", "gc_g", "jvp", "hvp")]
        rows.append([method, *accuracies, *counts])
    print_rows(
        f"{title}: test accuracy (%) on {tasks} tasks after so many CPU seconds, mean ± deviation over {seeds} seeds",
        ["method", *(f"{marks[place]:g} s" for place in places), "outer steps", "Gc(f)", "Gc(g)", "JVP", "HVP"],
        rows,
    )
    for method in METHODS[1:]:
        gains = [
            run.points[-1]["accuracy"] - other.points[-1]["accuracy"]
            for run, other in zip(traces[method], traces["ANIL"], strict=True)
        ]
        print_gain(f"{method} minus ANIL after {marks[-1]:g} s", gains, "points")
