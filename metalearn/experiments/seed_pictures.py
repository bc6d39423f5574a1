"""The picture of several seeds: every run with its own interval, and their mean with its interval."""

from __future__ import annotations

import math
from pathlib import Path

from metalearn.experiments.seeds import SeedRuns
from metalearn.reports.pictures import INK, pyplot, save_figure
from metalearn.reports.text import escape_for_figure

__all__ = ["draw_seeds"]

BLUE = "#2166ac"


def draw_seeds(path: Path, runs: SeedRuns, name: str, title: str) -> Path:
    """Draw one test measure of every seed.

    Args:
        path: the PNG file.
        runs: the seeds.
        name: of the measure, such as ``"test/acc"``.
        title: the heading.
    """
    plt = pyplot()
    percent = 100.0 if name.endswith("acc") else 1.0
    trained = {seed: tests for seed, run in runs.finished.items() if name in (tests := run.tests())}
    values = [percent * tests[name] for tests in trained.values()]
    widths = [percent * tests.get(f"{name}_ci95", math.nan) for tests in trained.values()]
    mean, _, ci95, count = runs.measures()[name]
    figure, axis = plt.subplots(figsize=(max(3.6, min(1.8 + 0.5 * count, 9)), 3.6), layout="constrained")
    axis.axhline(percent * mean, color=INK, linewidth=1, label=f"mean {percent * mean:.4g}")
    if math.isfinite(ci95):
        band = f"its 95 % interval, ± {percent * ci95:.2g}"
        axis.axhspan(percent * (mean - ci95), percent * (mean + ci95), color="0.9", zorder=0, label=band)
    own = "a run, with its interval over tasks" if any(map(math.isfinite, widths)) else "a run"
    axis.errorbar(
        range(count), values, yerr=widths, fmt="o", markersize=5, color=BLUE, capsize=3, linewidth=1, label=own
    )
    stride = max(1, -(-count // 20))
    axis.set_xticks(range(0, count, stride), [str(seed) for seed in trained][::stride])
    axis.set(xlabel="seed", ylabel=f"{name} (%)" if percent > 1 else name, xlim=(-0.6, count - 0.4))
    figure.suptitle(f"{escape_for_figure(title)}, {count} seed{'s' * (count != 1)}", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return save_figure(figure, path)
