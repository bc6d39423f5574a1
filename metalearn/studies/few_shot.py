"""Few-shot tasks: ITD-BiO and AID-BiO beside ANIL at equal seconds (arXiv 2108.00330, section 2.5)."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import Progress
from torch import nn

from metalearn.backbones import Conv4
from metalearn.bilevel import OracleCounts
from metalearn.checks import check_number
from metalearn.datamodules import ImageEpisodes, MiniImageNetDataModule, OmniglotDataModule
from metalearn.errors import ConfigError, MetalearnError
from metalearn.modules import ANIL, BilevelFewShot, MetaModule
from metalearn.reports.tables import write_csv
from metalearn.studies.curves import Trace, draw_bands, print_rows, spread

__all__ = ["METHODS", "SETTINGS", "Run", "Setting", "anil_calls", "study_few_shot"]

T = TypeVar("T")
TURN = 5.0
"""CPU seconds that a method trains before the next one goes on."""
METHODS = ("ANIL", "ITD-BiO", "AID-BiO")


@dataclass(frozen=True)
class Setting:
    """A data set of the study.

    Attributes:
        title: its heading.
        data: its class, of a root.
        episodes: the arguments of its tasks.
        network: the arguments of :class:`Conv4`.
        inner_lr: the theory's ``1 / L``, rounded; ``L`` is the largest curvature of the support loss at a head of zero, on the
            features of the untrained network: about 4 and 120 here.
    """

    title: str
    data: Callable[..., ImageEpisodes]
    episodes: Mapping[str, int]
    network: Mapping[str, int]
    inner_lr: float


SETTINGS: dict[str, Setting] = {
    "omniglot": Setting(
        "Omniglot, 20-way 5-shot",
        OmniglotDataModule,
        {"ways": 20, "shots": 5, "queries": 5, "tasks_per_batch": 4},
        {"ways": 20, "in_channels": 1, "hidden": 64, "image_size": 28},
        0.2,
    ),
    "miniimagenet": Setting(
        "miniImageNet's format, 5-way 5-shot",
        MiniImageNetDataModule,
        {"ways": 5, "shots": 5, "queries": 15, "tasks_per_batch": 2},
        {"ways": 5, "in_channels": 3, "hidden": 32, "image_size": 84},
        0.01,
    ),
}


def anil_calls(tasks: int, inner_steps: int) -> OracleCounts:
    """What an outer step of ANIL costs, in the unit of :class:`BilevelFewShot`'s own counts.

    ``f`` is the query loss, ``g`` the support loss, ``y`` the head and ``x`` the body: for each task one gradient of ``f``,
    ``N`` gradients of ``g``, and backwards through each of the ``N`` steps one product with ``grad_xy g`` and one with
    ``grad_yy g``. ITD-BiO saves the last of these, since it does not learn where the head starts.
    """
    each = tasks * inner_steps
    return OracleCounts(gc_f=tasks, gc_g=each, jvp=each, hvp=each)


class Run:
    """The training of one method from one seed, in turns.

    Attributes:
        seconds: of the process's own time, without the first step and without tests.
        steps: outer steps.
        counts: oracle calls of those steps.
    """

    def __init__(self, module: MetaModule, data: ImageEpisodes, seed: int, outer_lr: float) -> None:
        """Take a first step that changes nothing and counts nowhere: it chooses how tasks are executed.

        Args:
            module: what is trained.
            data: draws the tasks.
            seed: of the training tasks.
            outer_lr: Adam's.
        """
        self.module, self.data, self.seed = module, data, seed
        self.optimizer = torch.optim.Adam(module.parameters(), lr=outer_lr)
        self.seconds, self.steps, self.counts = 0.0, 0, OracleCounts()
        self._gradients()
        self._told = self._counted()

    def train(self, until: float) -> None:
        """Go on for a turn, or until the seconds are spent."""
        first = self.seconds
        begun = time.process_time()
        while self.seconds < until and self.seconds - first < TURN:
            self._gradients()
            self.optimizer.step()
            self.steps += 1
            self.seconds = first + time.process_time() - begun
        if isinstance(self.module, BilevelFewShot):
            now = self._counted()
            self.counts = OracleCounts(**{name: now[name] - self._told[name] for name in now})
        else:
            self.counts = anil_calls(self.steps * self.data.tasks_per_batch, self.module.inner_steps)

    def accuracy(self, tasks: int) -> float:
        """The mean accuracy (%) over the first ``tasks`` test tasks, which are the same for all runs."""
        found = []
        for index in range(tasks):
            support, query = self.data.episode(self.data.seed, "test", index)
            found.append(float((self.module.adapt(support)(query.x).argmax(-1) == query.y).float().mean()))
        return 100 * statistics.fmean(found)

    def point(self, mark: float, tasks: int) -> dict[str, float]:
        """All that is kept of a mark."""
        counts = self.counts.as_dict()
        return {
            "mark": mark, "step": float(self.steps), "calls": float(sum(counts.values())), "seconds": self.seconds,
            **counts, "accuracy": self.accuracy(tasks),
        }  # fmt: skip

    def _gradients(self) -> None:
        size = self.data.tasks_per_batch
        batch = self.data.draw(self.seed, "train", list(range(self.steps * size, (self.steps + 1) * size)))
        self.optimizer.zero_grad()
        self.module.training_step(batch, self.steps).backward()

    def _counted(self) -> dict[str, int]:
        return self.module.counts.as_dict() if isinstance(self.module, BilevelFewShot) else {}


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

    Every method trains the same network, from the same weights, on the same tasks, by Adam with the same learning rate, and takes
    the same number of inner steps of the same size from a head at zero; at each mark it is tested on the same tasks. ANIL learns
    where its head starts, ITD-BiO and AID-BiO add ``l2 |w|^2 / 2`` to the support loss. They train in turns of five seconds. A
    seed is that of the network's initial weights and of the training tasks.

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
        seconds: of training in a run.
        marks: tests of a run, evenly in seconds.
        tasks: test tasks.
        inner_steps: of all methods, in training and test.
        inner_lr: their size; ``null`` for 1 / L of the data set: 0.2 on Omniglot, 0.01 on miniImageNet.
        l2: of the heads of ITD-BiO and AID-BiO.
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
    if seeds < 1 or marks < 1 or tasks < 1:
        raise ConfigError(
            f"seeds is {seeds}, marks {marks} and tasks {tasks}, but all must be at least 1; use 5, 6 and 20"
        )
    check_number("seconds", seconds, "use 60.0", above=0)
    check_number("outer_lr", outer_lr, "use 0.002", above=0)

    def build(method: str, setting: Setting, seed: int) -> MetaModule:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = Conv4(zero_head=True, **setting.network)  # type: ignore[arg-type]
        size = setting.inner_lr if inner_lr is None else inner_lr
        if method == "ANIL":
            return ANIL(network, inner_steps=inner_steps, inner_lr=size)
        return BilevelFewShot(
            network, estimator="itd" if method == "ITD-BiO" else "aid", inner_steps=inner_steps, inner_lr=size, l2=l2,
            linear_steps=linear_steps,
        )  # fmt: skip

    for name in roots:
        for method in METHODS:
            build(method, SETTINGS[name], 0)  # what is wrong with the arguments is told before data are read
    folder, files, lines, table = Path(output), [], [], Path()
    told: dict[str, dict[str, list[Trace]]] = {}
    with _said_once(), Progress(transient=True) as progress:
        bar = progress.add_task("runs", total=len(roots) * seeds * len(METHODS) * seconds)
        for name, root in roots.items():
            setting = SETTINGS[name]
            data = setting.data(root, **setting.episodes)
            data.ready()
            traces = told.setdefault(name, {method: [] for method in METHODS})
            for seed in range(seeds):
                runs = {}
                for method in METHODS:
                    progress.update(bar, description=f"{setting.title}, seed {seed}, {method}, first step")
                    runs[method] = _named(method, seed, Run, build(method, setting, seed), data, seed, outer_lr)
                points: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
                for mark in (seconds * number / marks for number in range(1, marks + 1)):
                    while any(run.seconds < mark for run in runs.values()):
                        for method, run in runs.items():
                            progress.update(bar, description=f"{setting.title}, seed {seed}, {method}, to {mark:g} s")
                            before = run.seconds
                            _named(method, seed, run.train, mark)
                            progress.advance(bar, run.seconds - before)
                    for method, run in runs.items():
                        progress.update(bar, description=f"{setting.title}, seed {seed}, {method}, test at {mark:g} s")
                        points[method].append(run.point(mark, tasks))
                for method in METHODS:
                    traces[method].append(Trace(method, seed, points[method]))
                    lines += [
                        (name, method, seed, *(f"{value:.10g}" for value in point.values())) for point in points[method]
                    ]
                header = ["data", "method", "seed", *points["ANIL"][0]]
                # what is done is kept if the rest is interrupted
                table = write_csv(folder / "few_shot.csv", header, lines)
            files.append(draw_bands(
                folder / f"few_shot_{name}.png", traces,
                {"seconds": "CPU seconds of training", "calls": "oracle calls"}, {"accuracy": "test accuracy (%)"},
                f"{setting.title}, {seeds} seeds, {tasks} test tasks",
            ))  # fmt: skip
    for name, traces in told.items():
        _print(SETTINGS[name].title, traces, tasks)
    return [table, *files]


@contextmanager
def _said_once() -> Iterator[None]:
    """Within it, how tasks are executed is told once, not again for every seed."""
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(told)
        told.add(record.getMessage())
        return len(told) > before

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _named(method: str, seed: int, work: Callable[..., T], *args: Any) -> T:
    """``work(*args)``; an error of ours names the run."""
    try:
        return work(*args)
    except MetalearnError as error:
        raise type(error)(f"{method}, seed {seed}: {error}") from error


def _print(title: str, traces: Mapping[str, Sequence[Trace]], tasks: int) -> None:
    """The table of a data set: at most three marks, the last one among them; and what was gained over ANIL."""
    marks = [point["mark"] for point in traces["ANIL"][0].points]
    shown = sorted({round(len(marks) * third / 3) - 1 for third in (1, 2, 3)} - {-1})
    seeds = len(traces["ANIL"])
    rows = []
    for method, runs in traces.items():
        cells = []
        for place in shown:
            mean, deviation = spread([run.points[place]["accuracy"] for run in runs])
            cells.append(f"{mean:.2f} ± {deviation:.2f}")
        means = [spread([run.points[-1][key] for run in runs])[0] for key in ("step", "gc_f", "gc_g", "jvp", "hvp")]
        rows.append([method, *cells, *(f"{mean:,.0f}" for mean in means)])
    print_rows(
        f"{title}: test accuracy (%) on {tasks} tasks after so many CPU seconds, mean ± deviation over {seeds} seeds",
        ["method", *(f"{marks[place]:g} s" for place in shown), "outer steps", "Gc(f)", "Gc(g)", "JVP", "HVP"],
        rows,
    )
    for method in METHODS[1:]:
        gains = [
            run.points[-1]["accuracy"] - other.points[-1]["accuracy"]
            for run, other in zip(traces[method], traces["ANIL"], strict=True)
        ]
        mean, deviation = spread(gains)
        print(f"{method} minus ANIL after {marks[-1]:g} s: {mean:+.2f} ± {deviation:.2f} points, above 0 in "
              f"{sum(gain > 0 for gain in gains)} of {seeds} seeds")  # fmt: skip
