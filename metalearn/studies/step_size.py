"""Where multi-step MAML diverges: the inner step size against the number of inner steps, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.studies.cases import Case, Report, Row, run_cases
from metalearn.studies.image_runs import IMAGES, check_images, list_image_cases
from metalearn.studies.inner_steps import check_counts
from metalearn.studies.intervals import format_interval, select, write_rows
from metalearn.studies.known import FAMILIES, find_gradient, make_module, predict_boundary
from metalearn.studies.results import print_rows
from metalearn.studies.step_size_picture import draw_step_sizes
from metalearn.theory import maml_inner_step

__all__ = ["KNOWN", "grow", "run_known", "study_step_size"]

KNOWN = ("convex", "worst")
FACTORS = tuple(2 ** (number / 4 - 1) for number in range(9))
"""The step sizes that are tried, as multiples of the predicted boundary: from a half to twice."""
HALVINGS = 6
"""How often the interval between the last step size that converges and the first that does not is halved."""


def study_step_size(
    output: str,
    omniglot: str | None = None,
    glyphs: bool = False,
    inner_steps: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    outer_step: float = 1.0,
    outer_steps: int = 60,
    tasks: int = 20,
    image_inner_steps: Sequence[int] = (1, 5),
    inner_lrs: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    image_seeds: int = 3,
    image_steps: int = 150,
    test_tasks: int = 50,
    processes: int = 1,
) -> list[Path]:
    """Measure the inner step size above which training by MAML diverges, and compare it with the prediction.

    The tasks have a support loss whose smoothness ``L`` is known to be 1. There are two kinds. The convex ones are quadratics.
    In the worst case the queries lie where the support loss has its maximum. Gradient descent on the meta-objective diverges
    where its norm is larger after the outer steps than before, or ever twice as large. The boundary is bisected.

    With images, it also trains from each step size, and tests the accuracy.

    Args:
        output: where to write. The same command goes on with what is there.
        omniglot: the folder of Omniglot, to measure accuracies too; what is missing is downloaded to it.
        glyphs: whether to measure accuracies on letters that are drawn, which need no files.
        inner_steps: the numbers of inner steps on the tasks of known smoothness.
        seeds: how many seeds draw the tasks of known smoothness.
        outer_step: the outer step size times ``L``, below 2.
        outer_steps: how many outer steps are taken on the tasks of known smoothness.
        tasks: how many tasks of known smoothness there are.
        image_inner_steps: the numbers of inner steps on images.
        inner_lrs: the inner step sizes on images.
        image_seeds: how many seeds set the weights and draw the tasks of images.
        image_steps: how many outer steps a training on images takes.
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
    check_number("outer_step", outer_step, "use 1.0", above=0)
    if outer_step >= 2:
        raise ConfigError(f"outer_step is {outer_step:g}, but no outer loop converges from 2 on; use 1.0")
    check_counts("inner_steps", inner_steps)
    check_counts("image_inner_steps", image_inner_steps)
    for size in inner_lrs:
        check_number("inner_lrs", size, "use [0.1, 0.4]", above=0)
    folder = Path(output)
    known = {"inner_steps": list(inner_steps), "outer_step": outer_step, "outer_steps": outer_steps, "tasks": tasks}
    roots = {"omniglot": omniglot, "glyphs": "" if glyphs else None}
    images = check_images(roots, image_seeds, image_steps, tasks=test_tasks)
    cases = [Case(f"known_{seed}", "step_size:run_known", {**known, "seed": seed}) for seed in range(seeds)]
    grid = [{"inner_steps": steps, "inner_lr": size} for size in inner_lrs for steps in image_inner_steps]
    cases += list_image_cases(images, grid)
    options = {**known, "image_steps": image_steps, "test_tasks": test_tasks}
    rows = run_cases(folder, "step_size", options, cases, processes)
    _print_known(rows, inner_steps, seeds)
    for setting in images.roots:
        _print_accuracies(rows, setting, image_seeds)
    picture = draw_step_sizes(folder / "step_size.png", rows, list(images.roots), outer_step)
    return [write_rows(folder / "step_size.csv", rows), picture]


def run_known(
    seed: int, inner_steps: Sequence[int], outer_step: float, outer_steps: int, tasks: int, report: Report
) -> list[Row]:
    """Try step sizes around the predicted boundaries, and bisect the measured ones."""
    rows, pairs = [], [(family, steps) for family in KNOWN for steps in inner_steps]
    for number, (family, steps) in enumerate(pairs):
        predicted = predict_boundary(family, steps, outer_step)
        key = {"part": family, "seed": seed, "inner_steps": steps, "predicted": predicted}

        def measure(size: float, family: str = family, steps: int = steps) -> float:
            return grow(family, steps, size, seed, outer_step, outer_steps, tasks)

        growths = {factor * predicted: measure(factor * predicted) for factor in FACTORS}
        rows += [{**key, "kind": "grid", "alpha_L": size, "growth": growth} for size, growth in growths.items()]
        low = max((size for size, growth in growths.items() if growth <= 1), default=0.0)
        high = min((size for size, growth in growths.items() if growth > 1 and size > low), default=math.inf)
        for _ in range(HALVINGS if math.isfinite(high) else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if measure(middle) <= 1 else (low, middle)
        rows.append({**key, "kind": "boundary", "alpha_L": (low + high) / 2, "ratio": (low + high) / 2 / predicted})
        report((number + 1) / len(pairs))
    return rows


def grow(
    family: str, steps: int, step_size: float, seed: int, outer_step: float, outer_steps: int, tasks: int
) -> float:
    """By what factor the norm of the meta-gradient grows over the outer steps; it stops at twice that of the start."""
    episode, start = FAMILIES[family].tasks(seed, tasks)
    module = make_module(family, steps, step_size, start)
    optimizer = torch.optim.SGD(module.parameters(), lr=outer_step)
    _, first = find_gradient(module, episode)
    norm = first
    for _ in range(outer_steps):
        optimizer.step()
        _, norm = find_gradient(module, episode)
        if not norm <= 2 * first:  # neither where it is not a number
            return norm / first if math.isfinite(norm) else math.inf
    return norm / first


def _print_known(rows: Sequence[Row], inner_steps: Sequence[int], seeds: int) -> None:
    lines = []
    for family in KNOWN:
        for steps in inner_steps:
            mine = select(rows, part=family, kind="boundary", inner_steps=steps)
            lines.append([
                f"{family}, N = {steps}", f"{mine[0]['predicted']:.4f}", format_interval([row["alpha_L"] for row in mine], 4),
                format_interval([row["ratio"] for row in mine], 3), f"{maml_inner_step(L=1.0, steps=steps):.4f}",
            ])  # fmt: skip
    print_rows(
        f"alpha L at which training diverges: mean ± 95 % interval over {seeds} seeds",
        ["tasks", "predicted", "measured", "measured / predicted", "guaranteed, 1/(8N)"],
        lines,
    )


def _print_accuracies(rows: Sequence[Row], setting: str, seeds: int) -> None:
    mine = select(rows, part=setting, last=1)
    steps = sorted({row["inner_steps"] for row in mine})
    lines = []
    for size in sorted({row["inner_lr"] for row in mine}):
        cells = [select(mine, inner_lr=size, inner_steps=number) for number in steps]
        lines.append([f"{size:g}", *(format_interval([row["accuracy"] for row in cell], 2) for cell in cells)])
    print_rows(
        f"{IMAGES[setting].title}, 5-way 1-shot: test accuracy (%), mean ± 95 % interval over {seeds} seeds",
        ["inner_lr", *(f"N = {number}" for number in steps)],
        lines,
    )
