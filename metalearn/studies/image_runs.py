"""Trainings on images in the studies of theory: each is a case, with a test at every mark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from metalearn.checks import check_whole
from metalearn.datamodules import GlyphsDataModule, ImageEpisodes
from metalearn.errors import DivergenceError
from metalearn.modules import MetaModule
from metalearn.studies.cases import Case, Report, Row
from metalearn.studies.few_shot_runs import SETTINGS, Run, Setting
from metalearn.studies.methods import METHODS, build

__all__ = ["IMAGES", "Images", "check_images", "is_finite", "list_image_cases", "measure_norm", "open_data", "train"]


def _open_glyphs(root: str, **episodes: int) -> ImageEpisodes:
    return GlyphsDataModule(**episodes)


TASKS = {"ways": 5, "shots": 1, "queries": 5, "tasks_per_batch": 4}
NETWORK: dict[str, Any] = {"ways": 5, "in_channels": 1, "hidden": 32, "image_size": 28, "downsample": "stride"}
IMAGES: dict[str, Setting] = {
    "omniglot": replace(SETTINGS["omniglot"], title="Omniglot", episodes=TASKS, network=NETWORK),
    "glyphs": Setting("Glyphs", _open_glyphs, TASKS, NETWORK, 0.4),
    "miniimagenet": replace(
        SETTINGS["miniimagenet"], title="miniImageNet's format", episodes={**TASKS, "tasks_per_batch": 2},
    ),
}  # fmt: skip
"""The data sets; all tasks are 5-way."""


@dataclass(frozen=True)
class Images:
    """What is trained on.

    Attributes:
        roots: the folder of each data set that is used; empty for one that needs none.
        seeds: how many.
        steps: outer steps.
        marks: tests, evenly in outer steps.
        tasks: test tasks.
    """

    roots: Mapping[str, str]
    seeds: int
    steps: int
    marks: int
    tasks: int


def check_images(
    roots: Mapping[str, str | None], seeds: int, steps: int, marks: int = 1, tasks: int = 50, shots: int = 1
) -> Images:
    """Make the data ready that have a folder, once, before processes ask for them all at once.

    Raises:
        ConfigError: a number is out of range.
        DataError: the data cannot be read.
    """
    for name, value in (("image_seeds", seeds), ("image_steps", steps), ("marks", marks), ("test_tasks", tasks)):
        check_whole(name, value, 1)
    used = {name: root for name, root in roots.items() if root is not None}
    for name, root in used.items():
        open_data(name, root, shots)
    return Images(used, seeds, steps, min(marks, steps), tasks)


def open_data(name: str, root: str, shots: int, **episodes: int) -> ImageEpisodes:
    """Return the tasks of a data set, ready to be drawn."""
    data = IMAGES[name].data(root, **{**IMAGES[name].episodes, "shots": shots, **episodes})
    data.ready()
    return data


def list_image_cases(images: Images, grid: Sequence[Mapping[str, Any]], **options: Any) -> list[Case]:
    """List a case for each data set, each seed and each entry of the grid.

    Args:
        images: the data.
        grid: arguments of :func:`train`.
        options: further ones, the same for all.
    """
    cases = []
    for setting, root in images.roots.items():
        for seed in range(images.seeds):
            for entry in grid:
                label = "_".join(str(value).replace("/", "_over_") for value in entry.values())
                arguments = {
                    "setting": setting, "root": root, "seed": seed, "steps": images.steps, "marks": images.marks,
                    "tasks": images.tasks, **options, **entry,
                }  # fmt: skip
                cases.append(Case(f"{setting}_{label}_{seed}", "image_runs:train", arguments))
    return cases


def train(
    setting: str,
    root: str,
    seed: int,
    inner_steps: int,
    inner_lr: float,
    steps: int,
    marks: int,
    tasks: int,
    report: Report,
    method: str = "MAML",
    schedule: str = "fixed",
    shots: int = 1,
    norm_tasks: int = 0,
    outer_lr: float = 0.001,
) -> list[Row]:
    """Train a method, and test it at each mark; one that diverges is at chance from there on.

    Args:
        setting: the data set.
        root: its folder.
        seed: of the weights and the training tasks.
        inner_steps: ``N``.
        inner_lr: the size of an inner step.
        steps: outer steps.
        marks: tests, evenly in outer steps.
        tasks: test tasks.
        report: says how much is done.
        method: among :data:`METHODS`.
        schedule: kept in the rows.
        shots: support images of a class.
        norm_tasks: validation tasks over which the norm of the meta-gradient is taken; 0 for none.
        outer_lr: Adam's learning rate.
    """
    data = open_data(setting, root, shots)
    module = build(method, IMAGES[setting].network, seed, inner_steps, inner_lr)
    key = {"part": setting, "method": method, "schedule": schedule, "seed": seed, "inner_steps": inner_steps,
           "inner_lr": inner_lr}  # fmt: skip
    rows: list[Row] = []
    run: Run | None = None
    for mark in range(1, marks + 1):
        until = round(steps * mark / marks)
        try:
            run = run or Run(module, data, seed, outer_lr, METHODS[method].count)
            while run.steps < until:
                run.take_step()
                report(run.steps / steps)
            point = measure(run, tasks, norm_tasks) if is_finite(module) else None
        except DivergenceError:
            point = None  # which the row says
        rows.append({**key, "mark": mark, "last": int(mark == marks), **(point or _diverged(until, data))})
        if point is None:
            ends = [round(steps * late / marks) for late in range(mark + 1, marks + 1)]
            rows += [
                {**rows[-1], "mark": mark + 1 + number, "step": end, "last": int(end == steps)}
                for number, end in enumerate(ends)
            ]
            break
    return rows


def measure(run: Run, tasks: int, norm_tasks: int) -> Row:
    """All that is kept of a mark."""
    counts = run.counts.as_dict()
    return {
        "step": run.steps, **counts, "calls": sum(counts.values()), "seconds": run.seconds, "diverged": 0,
        "accuracy": run.accuracy(tasks),
        "gradient_norm": measure_norm(run.module, run.data, norm_tasks) if norm_tasks else math.nan,
    }  # fmt: skip


def _diverged(step: int, data: ImageEpisodes) -> Row:
    """What is kept of a mark that a training has not reached."""
    return {"step": step, "diverged": 1, "accuracy": 100 / int(data.ways), "gradient_norm": math.nan,
            "calls": math.nan, "seconds": math.nan}  # fmt: skip


def is_finite(module: MetaModule) -> bool:
    """Whether all weights are numbers."""
    return all(bool(torch.isfinite(value).all()) for value in module.parameters())


def measure_norm(module: MetaModule, data: ImageEpisodes, tasks: int) -> float:
    """The norm of the mean meta-gradient over the first ``tasks`` validation tasks, the same for all runs."""
    total: dict[str, torch.Tensor] = {}
    for first in range(0, tasks, data.tasks_per_batch):
        indices = list(range(first, min(first + data.tasks_per_batch, tasks)))
        for name, value in module.meta_gradient(data.draw(data.seed, "val", indices)).items():
            total[name] = total.get(name, 0) + value * (len(indices) / tasks)
    return math.sqrt(sum(float(value.double().square().sum()) for value in total.values()))
