"""How many tasks a batch: bias and deviation of the meta-gradient, and training at equal cost, by MAML, FOMAML and ANIL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metalearn.checks import check_number, check_whole
from metalearn.studies.batch_race import NAMES
from metalearn.studies.batch_size_picture import draw_batch_sizes
from metalearn.studies.cases import Case, Row, run_cases
from metalearn.studies.image_runs import IMAGES, check_images
from metalearn.studies.inner_steps import check_counts
from metalearn.studies.intervals import at_equal, format_interval, least_paid, list_values, select, write_rows
from metalearn.studies.results import print_rows

__all__ = ["study_batch_size"]

SHOWN = (1, 4, 16, 64)
"""Batches of the table."""


def study_batch_size(
    output: str,
    omniglot: str | None = None,
    glyphs: bool = False,
    batches: Sequence[int] = (1, 4, 16),
    seeds: int = 5,
    tasks: int = 128,
    calls: int = 3000,
    image_seeds: int = 3,
    image_tasks: int = 100,
    seconds: float = 30.0,
    marks: int = 6,
    test_tasks: int = 50,
    inner_steps: int = 5,
    inner_lr: float = 0.1,
    processes: int = 1,
) -> list[Path]:
    """Measure what the number of tasks in a batch does, for MAML, first-order MAML and ANIL.

    First it measures bias and deviation of the meta-gradient over a batch. They are held against the exact one over a fixed
    set of tasks: MAML's own for first-order MAML. Then it trains with several batches, until gradients or seconds are spent.

    Without data the tasks are regressions that share a linear representation. With images they are 5-way 1-shot tasks.

    Args:
        output: where to write. The same command goes on with what is there.
        omniglot: the folder of Omniglot, to train on it too; what is missing is downloaded to it.
        glyphs: whether to train on letters that are drawn too, which need no files.
        batches: the numbers of tasks in a batch, in training.
        seeds: how many seeds draw the linear tasks.
        tasks: how many linear tasks the exact meta-gradient is the mean of.
        calls: how many gradients and products a training on linear tasks spends.
        image_seeds: how many seeds set the weights and draw the tasks of images.
        image_tasks: how many tasks of images the exact meta-gradient is the mean of.
        seconds: how many CPU seconds a training on images takes.
        marks: how often a training is tested.
        test_tasks: how many tasks of images test a training.
        inner_steps: how many inner steps all methods take on images.
        inner_lr: the size of these inner steps.
        processes: how many runs work at a time, each in a process of its own.

    Returns:
        The files.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data cannot be read.
    """
    for name, value in (("seeds", seeds), ("calls", calls), ("inner_steps", inner_steps)):
        check_whole(name, value, 1)
    for name, value in (("tasks", tasks), ("image_tasks", image_tasks)):
        check_whole(name, value, 2)
    for name, size in (("seconds", seconds), ("inner_lr", inner_lr)):
        check_number(name, size, "use 0.4", above=0)
    check_counts("batches", batches)
    images = check_images({"omniglot": omniglot, "glyphs": "" if glyphs else None}, image_seeds, 1, marks, test_tasks)
    cases = [
        *(Case(f"noise_{seed}", "batch_noise:measure_known", {"seed": seed, "tasks": tasks}) for seed in range(seeds)),
        *(
            Case(f"{method}_{batch}_{seed}", "batch_race:race_known",
                 {"seed": seed, "method": method, "batch": batch, "calls": calls, "marks": marks})
            for seed in range(seeds) for method in NAMES for batch in batches
        ),
    ]  # fmt: skip
    loop = {"inner_steps": inner_steps, "inner_lr": inner_lr}
    race = {**loop, "seconds": seconds, "marks": marks, "test_tasks": test_tasks}
    for setting, root in images.roots.items():
        place = {"setting": setting, "root": root}
        for seed in range(image_seeds):
            cases.append(Case(f"{setting}_noise_{seed}", "batch_noise:measure_images",
                              {**place, **loop, "seed": seed, "tasks": image_tasks}))  # fmt: skip
            cases += [
                Case(f"{setting}_{method}_{batch}_{seed}", "batch_race:race_images",
                     {**place, **race, "seed": seed, "method": method, "batch": batch})
                for method in NAMES for batch in batches
            ]  # fmt: skip
    options = {**race, "tasks": tasks, "calls": calls, "image_tasks": image_tasks}
    rows = run_cases(Path(output), "batch_size", options, cases, processes)
    names = {"linear": "Linear tasks", **{setting: IMAGES[setting].title for setting in images.roots}}
    for part, title in names.items():
        _print_noise(rows, part, title)
        _print_race(rows, part, title)
    table = write_rows(Path(output) / "batch_size.csv", rows)
    return [table, draw_batch_sizes(Path(output) / "batch_size.png", rows, names)]


def _print_noise(rows: Sequence[Row], part: str, title: str) -> None:
    """Print bias and deviation for some sizes, at both weights."""
    mine = select(rows, part=part, kind="noise")
    lines = []
    for weights in ("initial", "trained"):
        for method in NAMES:
            of_method = select(mine, weights=weights, method=method)
            bias = format_interval([row["bias"] for row in select(of_method, batch=SHOWN[0])], 3)
            cells = [format_interval([row["deviation"] for row in select(of_method, batch=size)], 3) for size in SHOWN]
            lines.append([f"{weights} weights, {method}", bias, *cells])
    print_rows(
        f"{title}: bias and deviation of the meta-gradient of B tasks, in units of the exact one; mean ± 95 % interval over "
        f"{len(list_values(mine, 'seed'))} seeds",
        ["method", "bias", *(f"B = {size}" for size in SHOWN)],
        lines,
    )


def _print_race(rows: Sequence[Row], part: str, title: str) -> None:
    """Print the measure where all trainings have paid as much: in gradients and products, and in seconds."""
    mine = select(rows, part=part, kind="race")
    measure, digits = ("loss", 4) if part == "linear" else ("accuracy", 2)
    lines = []
    budgets = {paid: least_paid(mine, paid) for paid in ("calls", "seconds")}
    for method in NAMES:
        of_method = select(mine, method=method)
        equal = {paid: at_equal(of_method, paid, measure, "batch", budget) for paid, budget in budgets.items()}
        for batch in list_values(of_method, "batch"):
            cells = [format_interval(equal[paid][batch], digits) for paid in equal]
            steps = format_interval([float(row["step"]) for row in select(of_method, batch=batch, last=1)], 0)
            lines.append([f"{method}, B = {batch}", *cells, steps])
    what = "meta-loss on other tasks" if measure == "loss" else "test accuracy (%)"
    print_rows(
        f"{title}: {what}; mean ± 95 % interval over {len(list_values(mine, 'seed'))} seeds",
        [
            "method",
            f"after {budgets['calls']:,.0f} gradients and products",
            f"after {budgets['seconds']:.3g} CPU s",
            "outer steps",
        ],
        lines,
    )
