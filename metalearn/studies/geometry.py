"""What the geometry of the inner loss does: ANIL with a linear head and with one of two layers, over inner steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn.checks import check_number, check_whole
from metalearn.studies.cases import Case, Report, Row, run_cases
from metalearn.studies.few_shot_runs import anil_calls
from metalearn.studies.geometry_picture import draw_geometry
from metalearn.studies.image_runs import IMAGES, check_images, list_image_cases, open_data, train
from metalearn.studies.inner_steps import check_counts
from metalearn.studies.intervals import at_equal, format_interval, least_paid, list_values, select, write_rows
from metalearn.studies.known import find_gradient
from metalearn.studies.linear_tasks import draw_tasks, half_squares, make_anil, make_network, smoothness_of_head
from metalearn.studies.methods import build, squared_labels
from metalearn.studies.results import print_rows

__all__ = ["GEOMETRIES", "run_known", "study_geometry", "train_at_smoothness"]

GEOMETRIES: dict[str, tuple[str, str]] = {
    "convex": ("convex", "fixed"), "nonconvex": ("nonconvex", "fixed"), "nonconvex, c/N": ("nonconvex", "c/N"),
}  # fmt: skip
"""The method and the schedule of the inner step size."""
MARKS = 20
"""Points of a run on the linear tasks."""


def study_geometry(
    output: str,
    omniglot: str | None = None,
    glyphs: bool = False,
    miniimagenet: str | None = None,
    inner_steps: Sequence[int] = (1, 2, 5, 10, 20),
    step_size: float = 1.0,
    seeds: int = 5,
    outer_steps: int = 100,
    outer_lr: float = 0.01,
    tasks: int = 50,
    image_seeds: int = 3,
    image_steps: int = 150,
    marks: int = 5,
    test_tasks: int = 50,
    processes: int = 1,
) -> list[Path]:
    """Train ANIL with a strongly convex inner loss, and with a nonconvex one, over numbers of inner steps.

    The inner loss is the squared error with a weight decay of 0.01. It is strongly convex in a linear head, and nonconvex in
    a head of two layers. The inner step size is ``c / L``, where ``L`` is the largest curvature of the support loss in the
    head at the initial weights. For the head of two layers it is also ``c / (N L)``.

    Without data the tasks are regressions that share a linear representation. With images they are 5-way 5-shot tasks.

    Args:
        output: where to write. The same command goes on with what is there.
        omniglot: the folder of Omniglot, to train on it too; what is missing is downloaded to it.
        glyphs: whether to train on letters that are drawn too, which need no files.
        miniimagenet: where miniImageNet is, or data in its format, a folder or an archive.
        inner_steps: the numbers ``N`` of inner steps.
        step_size: the ``c`` of the inner step size.
        seeds: how many seeds draw the linear tasks.
        outer_steps: how many outer steps are taken on the linear tasks.
        outer_lr: the learning rate of Adam on the linear tasks.
        tasks: how many linear tasks there are.
        image_seeds: how many seeds set the weights and draw the tasks of images.
        image_steps: how many outer steps a training on images takes.
        marks: how often a training on images is tested.
        test_tasks: how many tasks of images test a training.
        processes: how many runs work at a time, each in a process of its own.

    Returns:
        The files.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data cannot be read.
    """
    for name, value in (("seeds", seeds), ("outer_steps", outer_steps), ("tasks", tasks)):
        check_whole(name, value, 1)
    for name, size in (("step_size", step_size), ("outer_lr", outer_lr)):
        check_number(name, size, "use 0.01", above=0)
    check_counts("inner_steps", inner_steps)
    roots = {"omniglot": omniglot, "glyphs": "" if glyphs else None, "miniimagenet": miniimagenet}
    images = check_images(roots, image_seeds, image_steps, marks, test_tasks, shots=5)
    known = {"inner_steps": list(inner_steps), "step_size": step_size, "outer_steps": outer_steps, "outer_lr": outer_lr,
             "tasks": tasks}  # fmt: skip
    cases = [Case(f"known_{seed}", "geometry:run_known", {**known, "seed": seed}) for seed in range(seeds)]
    grid = [
        {"method": method, "inner_steps": steps, "schedule": schedule}
        for method, schedule in GEOMETRIES.values() for steps in inner_steps
    ]  # fmt: skip
    sized = list_image_cases(images, grid, shots=5, inner_lr=step_size)
    cases += [Case(case.name, "geometry:train_at_smoothness", case.arguments) for case in sized]
    options = {**known, "image_steps": image_steps, "marks": marks, "test_tasks": test_tasks}
    rows = run_cases(Path(output), "geometry", options, cases, processes)
    _print(rows, "known", "Linear tasks: meta-loss", "loss", "calls", 4)
    _print_smoothness(select(rows, part="known", last=1))
    for setting in images.roots:
        _print(rows, setting, f"{IMAGES[setting].title}, 5-way 5-shot: test accuracy (%)", "accuracy", "seconds", 2)
    picture = draw_geometry(Path(output) / "geometry.png", rows, list(images.roots))
    return [write_rows(Path(output) / "geometry.csv", rows), picture]


def run_known(
    seed: int,
    inner_steps: Sequence[int],
    step_size: float,
    outer_steps: int,
    outer_lr: float,
    tasks: int,
    report: Report,
) -> list[Row]:
    """Train on the linear tasks with every geometry and number of inner steps."""
    rows: list[Row] = []
    episode = draw_tasks(seed, tasks)
    runs = [(geometry, steps) for geometry in GEOMETRIES for steps in inner_steps]
    for number, (geometry, steps) in enumerate(runs):
        method, schedule = GEOMETRIES[geometry]
        network = make_network(1 if method == "convex" else 2, seed)
        smoothness = smoothness_of_head(make_anil(network, 1, 1.0), half_squares, episode.support)
        size = step_size / smoothness / (steps if schedule == "c/N" else 1)
        module = make_anil(network, steps, size)
        optimizer = torch.optim.Adam(module.parameters(), lr=outer_lr)
        key = {"part": "known", "geometry": geometry, "seed": seed, "inner_steps": steps, "inner_lr": size}
        marks = [round(outer_steps * mark / MARKS) for mark in range(MARKS + 1)]
        for step in range(outer_steps + 1):
            loss, norm = find_gradient(module, episode)
            calls = sum(anil_calls(step * tasks, steps).as_dict().values())
            if step in marks:
                rows.append({**key, "mark": step, "step": step, "calls": calls, "loss": loss, "gradient_norm": norm,
                             "last": int(step == outer_steps)})  # fmt: skip
            if step < outer_steps:
                optimizer.step()
        rows[-1]["alpha_L"] = size * smoothness_of_head(module, half_squares, episode.support)
        report((number + 1) / len(runs))
    return rows


def train_at_smoothness(
    setting: str,
    root: str,
    seed: int,
    method: str,
    schedule: str,
    inner_steps: int,
    inner_lr: float,
    shots: int,
    report: Report,
    **options: Any,
) -> list[Row]:
    """Train on images with the inner step size ``inner_lr / L``, or ``inner_lr / (N L)``.

    ``L`` is taken over the first five training tasks of the seed, at the initial weights.
    """
    data = open_data(setting, root, shots)
    module = build(method, IMAGES[setting].network, seed, 1, 1.0)
    support = data.draw(seed, "train", list(range(5))).support
    size = inner_lr / smoothness_of_head(module, squared_labels, support) / (inner_steps if schedule == "c/N" else 1)
    rows = train(
        setting, root, seed, inner_steps, size, method=method, schedule=schedule, shots=shots, report=report, **options
    )
    geometry = next(name for name, pair in GEOMETRIES.items() if pair == (method, schedule))
    return [{**row, "geometry": geometry} for row in rows]


def _print(rows: Sequence[Row], part: str, title: str, measure: str, paid: str, digits: int) -> None:
    """Print the measure at the end, and where all numbers of inner steps have paid as much."""
    mine = select(rows, part=part)
    numbers, seeds = list_values(mine, "inner_steps"), len(list_values(mine, "seed"))
    values: dict[str, dict[int, list[float]]] = {}
    for geometry in GEOMETRIES:
        of_geometry = select(mine, geometry=geometry)
        ends = {steps: select(of_geometry, inner_steps=steps, last=1) for steps in numbers}
        values[geometry] = {steps: [row[measure] for row in last] for steps, last in ends.items()}
        equal = at_equal(of_geometry, paid, measure, "inner_steps", least_paid(of_geometry, paid))
        values[f"{geometry}, equal {paid}"] = equal
    lines = [
        [f"N = {steps}", *(format_interval(column.get(steps, []), digits) for column in values.values())] for steps in numbers
    ]  # fmt: skip
    print_rows(f"{title}; mean ± 95 % interval over {seeds} seeds", ["inner steps", *values], lines)
    gains = [
        [f"N = {steps}", *(format_interval(_gain(column, numbers[0], steps), digits) for column in values.values())]
        for steps in numbers[1:]
    ]  # fmt: skip
    print_rows(f"The same minus that of N = {numbers[0]}, seed by seed", ["inner steps", *values], gains)


def _gain(column: Mapping[int, Sequence[float]], first: int, steps: int) -> list[float]:
    """The differences between two numbers of inner steps; none where a run of either has diverged."""
    pair = column.get(first, []), column.get(steps, [])
    return [after - before for before, after in zip(*pair, strict=True)] if len(pair[0]) == len(pair[1]) else []


def _print_smoothness(rows: Sequence[Row]) -> None:
    """Print the inner step size times the largest curvature at the trained weights."""
    lines = [
        [f"N = {steps}", *(
            format_interval([row["alpha_L"] for row in select(rows, geometry=geometry, inner_steps=steps)], 2)
            for geometry in GEOMETRIES
        )] for steps in list_values(rows, "inner_steps")
    ]  # fmt: skip
    print_rows(
        "Linear tasks: inner step size times the largest curvature of any task, at the trained initial weights",
        ["inner steps", *GEOMETRIES],
        lines,
    )
