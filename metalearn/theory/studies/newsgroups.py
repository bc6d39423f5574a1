"""20 Newsgroups: one l2 penalty a feature, learned, against the best single one (arXiv 2108.00330, section 2.4)."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from metalearn.bilevel import AID, CG, BilevelProblem, Box, Nesterov, ProximalBiO, hypergradient, regularization_problem
from metalearn.bilevel.regularization import feature_logits
from metalearn.datamodules import Examples, NewsgroupsDataModule
from metalearn.errors import ConfigError
from metalearn.reports.tables import write_csv
from metalearn.theory.studies.curves import Trace, draw_bands, print_rows, spread

__all__ = ["study_newsgroups"]

Look = Callable[[Tensor], dict[str, float]]


def study_newsgroups(
    root: str,
    output: str,
    seeds: int = 5,
    vocabulary: int | None = 20_000,
    grid: Sequence[float] = (-13.0, -12.0, -11.0, -10.0, -9.0, -8.0, -7.0),
    solve_steps: int = 100,
    steps: int = 15,
    step_size: float = 2000.0,
    inner_step_size: float = 50.0,
    momentum: float = 0.95,
    inner_steps: int = 10,
    iterations: int = 8,
    sublinear: bool = False,
) -> list[Path]:
    """Compare learned penalties with the best single one, print one table, write ``newsgroups.csv`` and a picture.

    A seed is that of the cut of the published training part into training and validation posts. The grid's constant is the one
    with the best validation accuracy, and, beside it, the one with the best validation loss. Proximal AID-BiO starts at the
    latter. Two thirds of the validation posts are its outer loss's; it takes the penalties of the step at which the accuracy on
    the others is best, since those that it learns from are soon fitted by so many penalties. A row of the table is the
    linear model that the same inner solver finds for the penalties from zero, in the same number of steps.

    Args:
        root: the archive of 20 Newsgroups, or its folder.
        output: where to write.
        seeds: runs.
        vocabulary: the most frequent words, at most; ``null`` for all.
        grid: logarithms of the single penalty.
        solve_steps: inner steps from zero for each row and each constant.
        steps: outer steps at most.
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
            f"seeds is {seeds}, grid {list(grid)} and steps {steps}, but there must be at least one of each; use 5, [-9.0], 40"
        )
    whole = Nesterov(step_size=inner_step_size, momentum=momentum, steps=solve_steps)
    traces: list[Trace] = []
    found: dict[str, list[dict[str, float]]] = {"constant, best val accuracy": [], "constant, best val loss": [],
                                                "learned, one a feature": []}  # fmt: skip
    lines: list[tuple[object, ...]] = []
    data = NewsgroupsDataModule(root, vocabulary=vocabulary, sublinear=sublinear)
    with Progress(transient=True) as progress:
        task = progress.add_task("seeds", total=seeds * (len(grid) + steps + 1))
        for seed in range(seeds):
            progress.update(task, description=f"seed {seed}")
            data.cut_again(seed)
            outer, kept = _cut(data.part("val"), seed)
            problem = regularization_problem(data.part("train"), outer, classes=len(data.classes))
            look = _look({**{name: data.part(name) for name in ("train", "val", "test")}, "kept": kept})
            begun, searched = time.process_time(), []
            for constant in grid:
                x = torch.full((len(data.words),), constant)
                weights = _solve(problem, x, whole)
                searched.append({"constant": constant, **look(weights)})
                progress.advance(task)
            spent = time.process_time() - begun
            lines += [(seed, "constant", *point.values()) for point in searched]
            best = min(searched, key=lambda point: point["val_loss"])
            accurate = max(searched, key=lambda point: point["val_accuracy"])
            found["constant, best val accuracy"].append({**accurate, "seconds": spent})
            found["constant, best val loss"].append({**best, "seconds": spent})
            x = torch.full((len(data.words),), best["constant"])
            # from where on the penalty alone has half the curvature that the inner step size bears
            high = math.log(len(data.classes) / (2 * inner_step_size))
            algorithm = ProximalBiO(
                estimator=AID(
                    inner=Nesterov(step_size=inner_step_size, momentum=momentum, steps=inner_steps),
                    solver=CG(iterations=iterations),
                ),
                step_size=step_size,
                prox=Box(min(*grid, -14.0), high),
            )
            state = algorithm.init(problem, x, _solve(problem, x, whole))
            points = [{"step": 0.0, "calls": 0.0, "seconds": 0.0, **look(state["y"])}]
            chosen, reached, at = x, points[0]["kept_accuracy"], 0.0
            seconds = 0.0
            for _ in range(steps):
                begun = time.process_time()
                state = algorithm.step(problem, state)
                seconds += time.process_time() - begun
                calls = float(sum(state["counts"].values()))
                points.append({"step": float(state["step"]), "calls": calls, "seconds": seconds, **look(state["y"])})
                if points[-1]["kept_accuracy"] > reached:
                    chosen, reached, at = state["x"], points[-1]["kept_accuracy"], points[-1]["step"]
                progress.advance(task)
            lines += [(seed, "learned", point["step"], *list(point.values())[3:]) for point in points]
            traces.append(Trace("learned", seed, points))
            last = look(_solve(problem, chosen, whole))
            progress.advance(task)
            found["learned, one a feature"].append(
                {"constant": float(chosen.mean()), **last, "seconds": seconds, "calls": points[-1]["calls"], "step": at}
            )
    rows = [_row(name, each) for name, each in found.items()]
    title = f"20 Newsgroups, {len(data.words):,} words: mean ± deviation over {seeds} seeds"
    print_rows(
        title,
        ["penalty", "test acc %", "val acc %", "train acc %", "val loss", "log penalty", "outer step", "CPU s"],
        rows,
    )
    gains = [
        learned["test_accuracy"] - max(one["test_accuracy"], other["test_accuracy"])
        for one, other, learned in zip(*found.values(), strict=True)
    ]
    mean, deviation = spread(gains)
    print(f"learned minus the better of the two constants: {mean:+.2f} ± {deviation:.2f} points, above 0 in "
          f"{sum(gain > 0 for gain in gains)} of {seeds} seeds")  # fmt: skip
    folder = Path(output)
    header = ["seed", "penalty", "log_penalty_or_step", *list(traces[0].points[0])[3:]]
    levels = {
        "best single penalty": spread([each["test_accuracy"] for each in found["constant, best val accuracy"]])[0]
    }
    return [
        write_csv(folder / "newsgroups.csv", header, lines),
        draw_bands(
            folder / "newsgroups.png", {"learned, one a feature": traces},
            {"calls": "oracle calls", "seconds": "CPU seconds"},
            {"test_accuracy": "test accuracy (%)", "val_loss": "validation loss"},
            title, {"test_accuracy": levels},
        ),
    ]  # fmt: skip


def _solve(problem: BilevelProblem, x: Tensor, solver: Nesterov) -> Tensor:
    """The inner solver's ``W`` from zero."""
    estimator = AID(inner=solver, solver=CG(iterations=0))  # the hypergradient itself is not used
    weights: Tensor = hypergradient(problem, x, None, estimator).inner
    return weights


def _cut(part: Examples, seed: int) -> tuple[Examples, Examples]:
    """Two thirds of the examples, and the others."""
    order = torch.randperm(len(part.index), generator=torch.Generator().manual_seed(seed))
    end = max(1, 2 * len(order) // 3)
    halves = []
    for rows in (order[:end], order[end:]):
        x = part.x.to_sparse_coo().index_select(0, rows).coalesce()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            halves.append(Examples(part.index[rows], x.to_sparse_csr(), part.y[rows]))
    return halves[0], halves[1]


def _look(parts: Mapping[str, Examples]) -> Look:
    def look(weights: Tensor) -> dict[str, float]:
        told = {}
        with torch.no_grad():
            for name, part in parts.items():
                logits = feature_logits(weights, part.x)
                told[f"{name}_accuracy"] = 100 * float((logits.argmax(1) == part.y).float().mean())
                told[f"{name}_loss"] = float(F.cross_entropy(logits, part.y))
        return told

    return look


def _row(name: str, points: Sequence[dict[str, float]]) -> list[str]:
    def told(key: str, digits: int) -> str:
        mean, deviation = spread([point[key] for point in points])
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"

    step = told("step", 1) if "step" in points[0] else "-"
    accuracies = [told(f"{part}_accuracy", 2) for part in ("test", "val", "train")]
    return [name, *accuracies, told("val_loss", 4), told("constant", 2), step, told("seconds", 1)]
