"""How many inner steps: multi-step MAML with a fixed step size, and with one that falls as 1/N."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.studies.cases import Case, Report, Row, run_cases
from metalearn.studies.image_runs import IMAGES, check_images, list_image_cases
from metalearn.studies.inner_steps_picture import draw_inner_steps
from metalearn.studies.intervals import format_interval, select, write_rows
from metalearn.studies.known import FAMILIES, count_maml, find_gradient, make_module
from metalearn.studies.results import print_rows

__all__ = ["KNOWN", "SCHEDULES", "check_counts", "run_known", "size_of", "study_inner_steps"]

KNOWN = ("worst", "typical")
SCHEDULES = ("fixed", "c/N")


def study_inner_steps(
    output: str,
    omniglot: str | None = None,
    glyphs: bool = False,
    inner_steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    step_size: float = 0.25,
    seeds: int = 5,
    outer_step: float = 1.0,
    outer_steps: int = 60,
    tasks: int = 50,
    inner_lr: float = 0.4,
    image_seeds: int = 3,
    image_steps: int = 150,
    marks: int = 5,
    test_tasks: int = 50,
    processes: int = 1,
) -> list[Path]:
    """Train multi-step MAML with a fixed inner step size, and with one that falls as 1/N.

    It measures the norm of the meta-gradient over a fixed set of tasks. There are two kinds of tasks whose support loss has
    the smoothness ``L = 1``. In the worst case the queries lie where the support loss has its maximum. On typical tasks they
    lie near the support set. The horizontal axes are outer steps, and gradients together with Hessian-vector products.

    With images, it also measures the accuracy.

    Args:
        output: where to write. The same command goes on with what is there.
        omniglot: the folder of Omniglot, to train on it too; what is missing is downloaded to it.
        glyphs: whether to train on letters that are drawn too, which need no files.
        inner_steps: the numbers ``N`` of inner steps.
        step_size: the fixed inner step size times ``L`` on the tasks of known smoothness; also ``c``.
        seeds: how many seeds draw the tasks of known smoothness.
        outer_step: the outer step size times ``L``.
        outer_steps: how many outer steps are taken on the tasks of known smoothness.
        tasks: how many tasks of known smoothness there are.
        inner_lr: the fixed inner step size on images; also ``c``.
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
    for name, size in (("step_size", step_size), ("outer_step", outer_step), ("inner_lr", inner_lr)):
        check_number(name, size, "use 0.25", above=0)
    check_counts("inner_steps", inner_steps)
    roots = {"omniglot": omniglot, "glyphs": "" if glyphs else None}
    images = check_images(roots, image_seeds, image_steps, marks, test_tasks)
    known = {"inner_steps": list(inner_steps), "step_size": step_size, "outer_step": outer_step,
             "outer_steps": outer_steps, "tasks": tasks}  # fmt: skip
    cases = [Case(f"known_{seed}", "inner_steps:run_known", {**known, "seed": seed}) for seed in range(seeds)]
    grid = [
        {"inner_steps": steps, "inner_lr": size_of(schedule, inner_lr, steps), "schedule": schedule}
        for steps in inner_steps for schedule in SCHEDULES
    ]  # fmt: skip
    cases += list_image_cases(images, grid, norm_tasks=20)
    options = {**known, "image_steps": image_steps, "marks": marks, "test_tasks": test_tasks}
    rows = run_cases(Path(output), "inner_steps", options, cases, processes)
    for family in KNOWN:
        _print_known(rows, family, inner_steps, outer_steps, seeds)
    for setting in images.roots:
        _print_accuracies(rows, setting, inner_steps, image_seeds)
    table = write_rows(Path(output) / "inner_steps.csv", rows)
    return [table, draw_inner_steps(Path(output) / "inner_steps.png", rows, list(images.roots))]


def check_counts(name: str, values: Sequence[int]) -> None:
    """Raise unless these are whole numbers from 1 on, such as numbers of inner steps, and there is one."""
    if not values:
        raise ConfigError(f"{name} is empty, but there must be at least one number; use [1, 4]")
    for value in values:
        check_whole(name, value, 1, remedy="use [1, 4]")


def size_of(schedule: str, size: float, steps: int) -> float:
    """The inner step size of a schedule."""
    return size if schedule == "fixed" else size / steps


def run_known(
    seed: int,
    inner_steps: Sequence[int],
    step_size: float,
    outer_step: float,
    outer_steps: int,
    tasks: int,
    report: Report,
) -> list[Row]:
    """Descend on the meta-objective of every kind, schedule and number of inner steps."""
    rows: list[Row] = []
    runs = [(family, schedule, steps) for family in KNOWN for schedule in SCHEDULES for steps in inner_steps]
    for number, (family, schedule, steps) in enumerate(runs):
        size = size_of(schedule, step_size, steps)
        key = {"part": family, "schedule": schedule, "seed": seed, "inner_steps": steps, "inner_lr": size}
        rows += [{**key, **point} for point in descend(family, steps, size, seed, outer_step, outer_steps, tasks)]
        report((number + 1) / len(runs))
    return rows


def descend(
    family: str, steps: int, size: float, seed: int, outer_step: float, outer_steps: int, tasks: int
) -> list[Row]:
    """The norm of the meta-gradient before the first outer step and after each one, with what has been paid for it."""
    episode, start = FAMILIES[family].tasks(seed, tasks)
    module = make_module(family, steps, size, start)
    optimizer = torch.optim.SGD(module.parameters(), lr=outer_step)
    points: list[Row] = []
    for step in range(outer_steps + 1):
        loss, norm = find_gradient(module, episode)
        counts = count_maml(step * tasks, steps).as_dict()
        last = step == outer_steps or not math.isfinite(norm)
        points.append({"mark": step, "step": step, **counts, "calls": sum(counts.values()), "loss": loss,
                       "gradient_norm": norm, "last": int(last)})  # fmt: skip
        if last:
            break
        optimizer.step()
    return points


def _print_known(rows: Sequence[Row], family: str, inner_steps: Sequence[int], outer_steps: int, seeds: int) -> None:
    lines = []
    for steps in inner_steps:
        cells = [f"N = {steps}"]
        for schedule in SCHEDULES:
            mine = select(rows, part=family, schedule=schedule, inner_steps=steps)
            first, last = select(mine, step=0), select(mine, last=1)
            shares = [
                math.log10(max(row["gradient_norm"] / begun["gradient_norm"], 1e-16))
                for begun, row in zip(first, last, strict=True)
            ]
            cells += [format_interval(shares, 1), format_interval([row["loss"] for row in last], 3)]
        lines.append([*cells, f"{last[0]['calls']:,.0f}"])
    print_rows(
        f"{FAMILIES[family].title}: after {outer_steps} outer steps, log10 of the meta-gradient's norm over that at the start, "
        f"and the meta-loss; mean ± 95 % interval over {seeds} seeds",
        ["inner steps", "norm, fixed", "meta-loss, fixed", "norm, c/N", "meta-loss, c/N", "gradients and HVPs"],
        lines,
    )


def _print_accuracies(rows: Sequence[Row], setting: str, inner_steps: Sequence[int], seeds: int) -> None:
    lines = []
    for steps in inner_steps:
        cells = [f"N = {steps}"]
        for schedule in SCHEDULES:
            mine = select(rows, part=setting, schedule=schedule, inner_steps=steps, last=1)
            cells.append(format_interval([row["accuracy"] for row in mine], 2))
        mine = select(rows, part=setting, inner_steps=steps, last=1, diverged=0)
        paid = (
            [f"{mine[0]['calls']:,.0f}", format_interval([row["seconds"] for row in mine], 1)] if mine else ["-", "-"]
        )
        lines.append([*cells, *paid])
    print_rows(
        f"{IMAGES[setting].title}: test accuracy (%), mean ± 95 % interval over {seeds} seeds",
        ["inner steps", "fixed", "c/N", "gradients and HVPs", "CPU s"],
        lines,
    )
