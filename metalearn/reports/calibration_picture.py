"""The reliability diagram of a test: how often answers are right against how sure the model is of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metalearn.reports.class_table import bound_share
from metalearn.reports.fonts import fit_name
from metalearn.reports.pictures import pyplot, save_figure

__all__ = ["draw_calibration"]

BLUE = "#2166ac"


def draw_calibration(path: Path, bins: np.ndarray, title: str) -> Path | None:
    """The share of right answers in each bin of confidence, above the number of queries there (Guo et al. 2017).

    Points have the 95 % interval of their share (Wilson 1927), since few queries say little.

    Args:
        path: the PNG file.
        bins: queries, summed confidences and right answers of bins of equal width between 0 and 1, ``[3, bins]``.
        title: the heading.

    Returns:
        the file, or ``None`` where no query was asked.
    """
    count, sure, right = bins
    total = count.sum()
    if not total:
        return None
    plt = pyplot()
    error = np.abs(right - sure).sum() / total
    filled = count > 0
    edges = np.linspace(0, 1, len(count) + 1)
    middles, width = (edges[:-1] + edges[1:]) / 2, 0.94 / len(count)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(4.4, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1.2, label="as sure as right")
    shares = np.divide(right, count, out=np.zeros_like(right), where=filled)
    axis.bar(middles[filled], shares[filled], width, color=BLUE, alpha=0.75, label="share that is right")
    means = sure[filled] / count[filled]
    bounds = np.asarray([bound_share(*pair) for pair in zip(right[filled], count[filled], strict=True)])
    axis.errorbar(
        means, shares[filled], np.abs(bounds.T - shares[filled]), fmt="o", color="0.2", markersize=3.5, elinewidth=0.9,
        label="at the mean confidence, 95 % interval",
    )  # fmt: skip
    axis.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center")
    below.bar(middles, count, width, color="0.6")
    below.set(xlabel="confidence of the answer", ylabel="queries")
    figure.suptitle(
        f"{fit_name(title, 60)}\ncalibration error {100 * error:.1f} % over {int(total):,} queries", fontsize=9
    )
    return save_figure(figure, path)
