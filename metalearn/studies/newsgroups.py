"""20 Newsgroups: one l2 penalty a feature, learned, against the best single one (arXiv 2108.00330, section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from metalearn.bilevel import AID, CG, Box, Nesterov, ProximalBiO
from metalearn.checks import check_whole
from metalearn.datamodules import NewsgroupsDataModule
from metalearn.datamodules.newsgroups import Cut
from metalearn.errors import ConfigError
from metalearn.progress import Progress
from metalearn.studies.curves import Trace, draw_bands
from metalearn.studies.newsgroups_seed import Learned, Point, Searched, Seed
from metalearn.studies.results import PointsFile, format_points, mean_of, print_gain, print_rows

__all__ = ["study_newsgroups"]

ROWS = (
    "constant, best val accuracy",
    "constant, best val loss",
    "constant, best test accuracy",
    "learned, one a feature",
)
"""The third one, which nobody could choose without the test posts, says how well any constant of the grid does."""

HEADER = [
    "penalty", "test acc %", "refit", "val acc %", "held acc %", "train acc %", "val loss", "log penalty", "outer step", "CPU s",
]  # fmt: skip


def study_newsgroups(
    root: str,
    output: str,
    seeds: int = 5,
    vocabulary: int | None = 20_000,
    cut: Cut = "date",
    grid: Sequence[float] = (-13.0, -12.0, -11.0, -10.0, -9.0, -8.0, -7.0, -6.0),
    solve_steps: int = 100,
    start: float = -9.0,
    steps: int = 20,
    step_size: float = 1000.0,
    inner_step_size: float = 50.0,
    momentum: float = 0.95,
    inner_steps: int = 40,
    iterations: int = 30,
    sublinear: bool = True,
) -> list[Path]:
    """Compare learned penalties with the best single one, print one table, write ``newsgroups.csv`` and a picture.

    A seed draws 90 % of the published training part's posts. Of each group's, the later half is for validation (or a random
    half, by ``cut: random``), and the latest quarter of these is held out. A constant is chosen by all validation posts.
    Proximal AID-BiO starts at one constant, and its outer loss is that of the validation posts which are not held out. So
    many penalties soon fit these; so it takes the penalties of the step at which the accuracy on the held-out ones is
    best. A row of the table is the linear model that the same inner solver finds for the penalties from zero, in as many
    steps; "refit" is one that is fitted to all these posts, validation and held-out ones included.

    Args:
        root: the archive of 20 Newsgroups, or its folder.
        output: where to write.
        seeds: runs.
        vocabulary: the most frequent words, at most; ``null`` for all.
        cut: whether posts for validation are drawn at random, or are the later ones by date.
        grid: logarithms of the single penalty.
        solve_steps: inner steps from zero for each row and each constant.
        start: the logarithm of every penalty at the start.
        steps: outer steps.
        step_size: the step size of the outer loop.
        inner_step_size: the step size of the inner solver, Nesterov's method.
        momentum: the momentum of the inner solver.
        inner_steps: inner steps in an outer step, from where the last one's ended.
        iterations: the iterations of conjugate gradients in an outer step.
        sublinear: whether the count ``c`` of a word enters as ``1 + log c``.

    Returns:
        The files.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data cannot be read.
    """
    check_whole("seeds", seeds, 1, remedy="use 5")
    check_whole("steps", steps, 1, remedy="use 20")
    if not grid:
        raise ConfigError("grid is empty, but there must be at least one logarithm; use [-9.0]")
    data = NewsgroupsDataModule(
        root, vocabulary=vocabulary, held_share=0.25, cut=cut, used_share=0.9, sublinear=sublinear
    )
    make_solver = partial(Nesterov, step_size=inner_step_size, momentum=momentum)
    estimator = AID(inner=make_solver(steps=inner_steps), solver=CG(iterations=iterations))
    table = PointsFile(Path(output) / "newsgroups.csv", ["seed", "penalty", "log_penalty_or_step"], digits=None)
    traces: list[Trace] = []
    results: dict[str, list[Point]] = {name: [] for name in ROWS}
    with Progress("seeds", seeds * (len(grid) + steps + 1)) as progress:
        advance = progress.advance
        for seed in range(seeds):
            progress.describe(f"seed {seed}")
            posts = Seed.draw(data, seed, make_solver(steps=solve_steps))
            searched = posts.search(grid, advance)
            # from where on the penalty alone has half the curvature that the inner step size bears
            high = math.log(len(data.classes) / (2 * inner_step_size))
            box = Box(min(*grid, start, -14.0), max(high, start))
            algorithm = ProximalBiO(estimator=estimator, step_size=step_size, prox=box)
            learned = posts.learn(algorithm, start, steps, advance)
            for name, point in _list_results(posts, searched, learned).items():
                results[name].append(point)
            advance()
            traces.append(Trace("learned", seed, learned.points))
            _add_points(table, seed, searched, learned)
            table.write()
    title = f"20 Newsgroups, {len(data.words):,} words: mean ± deviation over {seeds} seeds"
    _print(title, results)
    return [table.path, _draw(Path(output) / "newsgroups.png", title, traces, results)]


def _list_results(posts: Seed, searched: Searched, learned: Learned) -> dict[str, Point]:
    """Return the rows of a seed: the best constant by each of three keys, and the learned penalties."""
    results = {}
    for name, key, sign in zip(ROWS, ("all_accuracy", "all_loss", "test_accuracy"), (1, -1, 1), strict=False):
        best = max(searched.points, key=lambda point: sign * point[key])  # used at once
        x = posts.constant(best["constant"])
        results[name] = {**best, "seconds": searched.seconds, "refit": posts.refit_accuracy(x)}
    results[ROWS[-1]] = {
        **posts.measure(learned.x),
        "refit": posts.refit_accuracy(learned.x),
        "constant": float(learned.x.mean()),
        "step": learned.step,
        "seconds": learned.points[-1]["seconds"],
    }
    return results


def _add_points(table: PointsFile, seed: int, searched: Searched, learned: Learned) -> None:
    for point in searched.points:
        table.add((seed, "constant", point["constant"]), [{key: point[key] for key in list(point)[1:]}])
    for point in learned.points:
        table.add((seed, "learned", point["step"]), [{key: point[key] for key in list(point)[3:]}])


def _print(title: str, results: Mapping[str, Sequence[Point]]) -> None:
    """Print the table, and by how much the learned penalties are ahead of each constant."""
    print_rows(title, HEADER, [_format_row(name, points) for name, points in results.items()])
    for name in ROWS[:3]:
        gains = [
            learned["test_accuracy"] - other["test_accuracy"]
            for other, learned in zip(results[name], results[ROWS[-1]], strict=True)
        ]
        print_gain(f"learned minus {name}", gains, "points of test accuracy")


def _draw(path: Path, title: str, traces: Sequence[Trace], results: Mapping[str, Sequence[Point]]) -> Path:
    levels = {
        key: {"best single penalty": mean_of(results[name], key)}
        for key, name in (("test_accuracy", ROWS[2]), ("held_accuracy", ROWS[0]))
    }
    return draw_bands(
        path,
        {"learned, one a feature": traces},
        {"calls": "oracle calls", "seconds": "CPU seconds"},
        {"test_accuracy": "test accuracy (%)", "held_accuracy": "held-out accuracy (%)", "val_loss": "validation loss"},
        title,
        levels,
    )


def _format_row(name: str, points: Sequence[Point]) -> list[str]:
    accuracies = [format_points(points, f"{part}_accuracy", 2) for part in ("test", "val", "held", "train")]
    return [
        name,
        accuracies[0],
        format_points(points, "refit", 2),
        *accuracies[1:],
        format_points(points, "val_loss", 4),
        format_points(points, "constant", 2),
        format_points(points, "step", 1) if "step" in points[0] else "-",
        format_points(points, "seconds", 1),
    ]
