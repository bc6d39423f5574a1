"""Hyper-cleaning on MNIST by seven algorithms (arXiv 2108.00330, section 4.4; 2106.04692; 2110.07004)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from metalearn.bilevel import State, detection_auroc, linear_logits
from metalearn.checks import UNBOUNDED, check_whole
from metalearn.datamodules import MNISTCleaningDataModule
from metalearn.errors import ConfigError
from metalearn.progress import Progress
from metalearn.studies.cleaning_methods import METHODS, run_baseline, run_method
from metalearn.studies.curves import Trace, draw_bands
from metalearn.studies.results import PointsFile, format_points, mean_of, print_rows, run_named

__all__ = ["BASELINES", "study_hyper_cleaning"]

BASELINES = ("no cleaning", "clean labels alone")
"""Gradient descent with all weights alike, and with those of wrong labels at 0: what learned weights are to be held against."""

HEADER = [
    "corruption, method",
    "test acc %",
    "AUROC",
    "val loss",
    "outer steps",
    "Gc(f)",
    "Gc(g)",
    "JVP",
    "HVP",
    "CPU s",
]


def study_hyper_cleaning(
    root: str,
    output: str,
    corruptions: Sequence[float] = (0.1, 0.4),
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 5,
    budget: int = 4_000_000,
    train: int = 6000,
    val: int = 2000,
    test: int = 2000,
) -> list[Path]:
    """Run the study, print one table, write ``hyper_cleaning.csv`` and a picture for each corruption.

    The split and the mask of wrong labels are constants; a seed is that of the initial weights, the batches and the random
    directions. Every method has the same budget of oracle calls, each counted times the examples of its batch. So have
    two baselines that learn no weights: all alike, and those of the wrong labels 0. Seconds are the process's own.

    Args:
        root: MNIST's folder.
        output: where to write.
        corruptions: shares of wrong training labels.
        methods: their names; those of the default are all that there are.
        seeds: runs of each method.
        budget: oracle calls of a run.
        train: training examples.
        val: validation examples.
        test: test examples.

    Returns:
        The files.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data cannot be read.
    """
    _check_arguments(corruptions, methods, seeds, budget)
    folder, files, rows = Path(output), [], []
    table = PointsFile(folder / "hyper_cleaning.csv", ["corruption", "method", "seed"])
    with Progress("runs", len(corruptions) * (len(methods) + 2) * seeds) as progress:
        for corruption in corruptions:
            data = MNISTCleaningDataModule(root, corruption=corruption, train=train, val=val, test=test)
            data.setup()
            traces: dict[str, list[Trace]] = {}
            for name, run in _list_runs(data, methods, budget):
                traces[name] = []
                for seed in range(seeds):
                    progress.describe(f"corruption {corruption:g}, {name}, seed {seed}")
                    with run_named(f"{name} at corruption {corruption:g}, seed {seed}"):
                        points = run(seed)
                    traces[name].append(Trace(name, seed, points))
                    table.add((corruption, name, seed), points)
                    progress.advance()
                rows.append(_format_row(corruption, name, traces[name]))
            table.write()
            title = f"{100 * corruption:g} % wrong labels, {train} training examples, {seeds} seeds"
            files.append(_draw(folder / f"hyper_cleaning_{corruption:g}.png", title, traces))
    print_rows(f"Hyper-cleaning: mean ± deviation over {seeds} seeds after {budget:,} oracle calls", HEADER, rows)
    return [table.path, *files]


def _check_arguments(corruptions: Sequence[float], methods: Sequence[str], seeds: int, budget: int) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise ConfigError(f"methods has {unknown[:1] or 'nothing'}, but it must be among {', '.join(METHODS)}; drop it")
    if not corruptions:
        raise ConfigError("corruptions is empty, but there must be at least one share; use [0.4]")
    check_whole("seeds", seeds, 1, remedy="use 5")
    check_whole("budget", budget, 1, UNBOUNDED, "use 4000000")


def _list_runs(
    data: MNISTCleaningDataModule, methods: Sequence[str], budget: int
) -> Iterator[tuple[str, Callable[[int], list[dict[str, float]]]]]:
    """Yield the baselines and the methods by name, each as a function of the seed."""
    train, val, look = data.part("train"), data.part("val"), _make_look(data)
    constant = torch.zeros(len(train.y)), torch.where(data.corrupted, -torch.inf, torch.inf)
    for name, x in zip(BASELINES, constant, strict=True):
        yield name, partial(run_baseline, x, train, val, look, budget)
    for name in methods:
        yield name, partial(run_method, METHODS[name], train, val, look, budget)


def _draw(path: Path, title: str, traces: Mapping[str, Sequence[Trace]]) -> Path:
    return draw_bands(
        path,
        traces,
        {"calls": "oracle calls x examples", "seconds": "CPU seconds"},
        {"accuracy": "test accuracy (%)", "auroc": "AUROC of 1 - sigmoid(x)"},
        f"Hyper-cleaning on MNIST, {title}",
        baselines=BASELINES,
    )


def _make_look(data: MNISTCleaningDataModule) -> Callable[[State], dict[str, float]]:
    test, val = data.part("test"), data.part("val")

    def look(state: State) -> dict[str, float]:
        with torch.no_grad():
            right = linear_logits(state["y"], test.x).argmax(1) == test.y
            loss = torch.nn.functional.cross_entropy(linear_logits(state["y"], val.x), val.y)
        return {
            "accuracy": 100 * float(right.float().mean()),
            "auroc": detection_auroc(state["x"], data.corrupted),
            "val_loss": float(loss),
        }

    return look


def _format_row(corruption: float, name: str, traces: Sequence[Trace]) -> list[str]:
    last = [trace.points[-1] for trace in traces]
    return [
        f"{corruption:g} {name}",
        format_points(last, "accuracy", 2),
        format_points(last, "auroc", 4),
        format_points(last, "val_loss", 4),
        *(f"{mean_of(last, key):,.0f}" for key in ("step", "gc_f", "gc_g", "jvp", "hvp")),
        format_points(last, "seconds", 1),
    ]
