"""20 Newsgroups: one l2 penalty a feature, learned, against the best single one (arXiv 2108.00330, section 2.4)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from metalearn.bilevel import AID, CG, BilevelProblem, Box, Nesterov, ProximalBiO, hypergradient, regularization_problem
from metalearn.bilevel.problems.regularization import feature_logits
from metalearn.datamodules import Examples, NewsgroupsDataModule
from metalearn.datamodules.newsgroups import Cut
from metalearn.errors import ConfigError
from metalearn.reports.tables import write_csv
from metalearn.studies.curves import Trace, draw_bands, print_rows, spread

__all__ = ["study_newsgroups"]

Points = list[dict[str, float]]
Look = Callable[[Tensor], dict[str, float]]

ROWS = (
    "constant, best val accuracy",
    "constant, best val loss",
    "constant, best test accuracy",
    "learned, one a feature",
)
"""The third one, which nobody could choose without the test posts, says how well any constant of the grid does."""


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
    Proximal AID-BiO starts at one constant, and its outer loss is that of the validation posts which are not held out; it takes
    the penalties of the step at which the accuracy on the held-out ones is best, since those that it learns from are soon fitted
    by so many penalties. A row of the table is the linear model that the same inner solver finds for the penalties from zero, in
    the same number of steps; "refit" is one that is fitted to all these posts, validation and held-out ones included.

    Args:
        root: the archive of 20 Newsgroups, or its folder.
        output: where to write.
        seeds: runs.
        vocabulary: the most frequent words, at most; ``null`` for all.
        cut: see :class:`~metalearn.datamodules.NewsgroupsDataModule`.
        grid: logarithms of the single penalty.
        solve_steps: inner steps from zero for each row and each constant.
        start: the logarithm of every penalty at the start.
        steps: outer steps.
        step_size: of the outer loop.
        inner_step_size: of the inner solver, Nesterov's.
        momentum: of the inner solver.
        inner_steps: inner steps in an outer step, from where the last one's ended.
        iterations: of conjugate gradients in an outer step.
        sublinear: whether the count ``c`` of a word enters as ``1 + log c``.

    Returns:
        The files.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data cannot be read.
    """
    if seeds < 1 or not grid or steps < 1:
        raise ConfigError(
            f"seeds is {seeds}, grid {list(grid)} and steps {steps}, but there must be at least one of each; use 5, [-9.0], 20"
        )
    whole = Nesterov(step_size=inner_step_size, momentum=momentum, steps=solve_steps)
    folder = Path(output)
    traces: list[Trace] = []
    found: dict[str, Points] = {name: [] for name in ROWS}
    lines: list[tuple[object, ...]] = []
    data = NewsgroupsDataModule(
        root, vocabulary=vocabulary, held_share=0.25, cut=cut, used_share=0.9, sublinear=sublinear
    )
    with Progress(transient=True) as progress:
        task = progress.add_task("seeds", total=seeds * (len(grid) + steps + 1))
        for seed in range(seeds):
            progress.update(task, description=f"seed {seed}")
            data.cut_again(seed)
            problem = regularization_problem(data.part("train"), data.part("val"), classes=len(data.classes))
            every = _joined(data.part("train"), data.part("val"), data.part("held"))
            refit = regularization_problem(every, data.part("val"), classes=len(data.classes))
            look = _look(data.parts)
            begun, searched = time.process_time(), []
            for constant in grid:
                weights = _solve(problem, torch.full((len(data.words),), constant), whole)
                searched.append({"constant": constant, **look(weights)})
                progress.advance(task)
            spent = {"seconds": time.process_time() - begun}
            lines += [(seed, "constant", *point.values()) for point in searched]
            for name, key, sign in zip(ROWS, ("all_accuracy", "all_loss", "test_accuracy"), (1, -1, 1), strict=False):
                best = max(searched, key=lambda point: sign * point[key])
                x = torch.full((len(data.words),), best["constant"])
                found[name].append({**best, **spent, "refit": look(_solve(refit, x, whole))["test_accuracy"]})
            # from where on the penalty alone has half the curvature that the inner step size bears
            high = math.log(len(data.classes) / (2 * inner_step_size))
            algorithm = ProximalBiO(
                estimator=AID(
                    inner=Nesterov(step_size=inner_step_size, momentum=momentum, steps=inner_steps),
                    solver=CG(iterations=iterations),
                ),
                step_size=step_size,
                prox=Box(min(*grid, start, -14.0), max(high, start)),
            )
            x = torch.full((len(data.words),), float(start))
            state = algorithm.init(problem, x, _solve(problem, x, whole))
            points = [{"step": 0.0, "calls": 0.0, "seconds": 0.0, **look(state["y"])}]
            chosen, best = x, points[0]
            for _ in range(steps):
                x, begun = state["x"], time.process_time()
                state = algorithm.step(problem, state)
                seconds = points[-1]["seconds"] + time.process_time() - begun
                calls = float(sum(state["counts"].values()))
                points.append({"step": float(state["step"]), "calls": calls, "seconds": seconds, **look(state["y"])})
                if points[-1]["held_accuracy"] > best["held_accuracy"]:
                    chosen, best = x, points[-1]  # its y is that of the x before the step
                progress.advance(task)
            lines += [(seed, "learned", point["step"], *list(point.values())[3:]) for point in points]
            traces.append(Trace("learned", seed, points))
            learned = {
                "constant": float(chosen.mean()), **look(_solve(problem, chosen, whole)), "step": best["step"],
                "seconds": points[-1]["seconds"], "refit": look(_solve(refit, chosen, whole))["test_accuracy"],
            }  # fmt: skip
            progress.advance(task)
            found[ROWS[-1]].append(learned)
            header = ["seed", "penalty", "log_penalty_or_step", *list(points[0])[3:]]
            # what is done is kept if the rest is interrupted
            table = write_csv(folder / "newsgroups.csv", header, lines)
    title = f"20 Newsgroups, {len(data.words):,} words: mean ± deviation over {seeds} seeds"
    print_rows(
        title,
        [
            "penalty",
            "test acc %",
            "refit",
            "val acc %",
            "held acc %",
            "train acc %",
            "val loss",
            "log penalty",
            "outer step",
            "CPU s",
        ],
        [_row(name, each) for name, each in found.items()],
    )
    for name in ROWS[:3]:
        gains = [
            learned["test_accuracy"] - other["test_accuracy"]
            for other, learned in zip(found[name], found[ROWS[-1]], strict=True)
        ]
        mean, deviation = spread(gains)
        print(f"learned minus {name}: {mean:+.2f} ± {deviation:.2f} points of test accuracy, above 0 in "
              f"{sum(gain > 0 for gain in gains)} of {seeds} seeds")  # fmt: skip
    levels = {
        key: {"best single penalty": spread([each[key] for each in found[name]])[0]}
        for key, name in (("test_accuracy", ROWS[2]), ("held_accuracy", ROWS[0]))
    }
    return [
        table,
        draw_bands(
            folder / "newsgroups.png", {"learned, one a feature": traces},
            {"calls": "oracle calls", "seconds": "CPU seconds"},
            {"test_accuracy": "test accuracy (%)", "held_accuracy": "held-out accuracy (%)", "val_loss": "validation loss"},
            title, levels,
        ),
    ]  # fmt: skip


def _solve(problem: BilevelProblem, x: Tensor, solver: Nesterov) -> Tensor:
    """The inner solver's ``W`` from zero."""
    estimator = AID(inner=solver, solver=CG(iterations=0))  # the hypergradient itself is not used
    weights: Tensor = hypergradient(problem, x, None, estimator).inner
    return weights


def _joined(*parts: Examples) -> Examples:
    """All examples of the parts."""
    x = torch.cat([part.x.to_sparse_coo() for part in parts]).coalesce()
    labels = torch.cat([part.y for part in parts])
    return Examples(torch.arange(len(labels)), x, labels)


def _look(parts: Mapping[str, Examples]) -> Look:
    """Accuracy (%) and loss on each part, and on ``all`` validation posts: those of the outer loss and the held-out ones."""
    share = len(parts["val"].y) / (len(parts["val"].y) + len(parts["held"].y))

    def look(weights: Tensor) -> dict[str, float]:
        told = {}
        with torch.no_grad():
            for name, part in parts.items():
                logits = feature_logits(weights, part.x)
                told[f"{name}_accuracy"] = 100 * float((logits.argmax(1) == part.y).float().mean())
                told[f"{name}_loss"] = float(F.cross_entropy(logits, part.y))
        for key in ("accuracy", "loss"):
            told[f"all_{key}"] = share * told[f"val_{key}"] + (1 - share) * told[f"held_{key}"]
        return told

    return look


def _row(name: str, points: Sequence[dict[str, float]]) -> list[str]:
    def told(key: str, digits: int) -> str:
        mean, deviation = spread([point[key] for point in points])
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"

    step = told("step", 1) if "step" in points[0] else "-"
    accuracies = [told(f"{part}_accuracy", 2) for part in ("test", "val", "held", "train")]
    return [
        name,
        accuracies[0],
        told("refit", 2),
        *accuracies[1:],
        told("val_loss", 4),
        told("constant", 2),
        step,
        told("seconds", 1),
    ]
