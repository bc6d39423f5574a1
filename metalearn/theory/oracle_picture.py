"""A picture of upper bounds against lower ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.checks import check_number, check_numbers, read_path
from metalearn.errors import ConfigError
from metalearn.reports.pictures import pyplot, save_figure
from metalearn.theory.oracle_calls import check_symbols, complexity

__all__ = ["draw_complexity"]

NONCONVEX = ("AID-BiO", "ITD-BiO", "ProximalBiO", "F2BA+", "lower bound, Chen and Zhang", "lower bound, Ji")
CONVEX = ("AccBiO", "AccBiO-BG", "AccBiO-BG, quadratic g", "lower bound, strongly convex")
COLOURS = (("#2166ac", "-"), ("#d6604d", "-"), ("#4d9221", "-."), ("#762a83", ":"))
POINTS = 60


def draw_complexity(
    path: str | Path,
    *,
    kappa: float = 10.0,
    eps: float = 1e-3,
    mu_x: float = 1e-2,
    kappas: tuple[float, float] = (1.0, 1e3),
    accuracies: tuple[float, float] = (1e-6, 1e-1),
) -> Path:
    """Draw how many oracle calls methods need in theory, and how many any method needs.

    The upper two pictures are of a nonconvex ``Phi``, the lower two of a strongly convex one. All axes are logarithmic. Constants
    and logarithms are left out, so slopes mean something and heights do not.

    Args:
        path: the PNG file.
        kappa: the condition number of ``g`` where the accuracy changes.
        eps: the accuracy where the condition number changes.
        mu_x: the strong convexity of ``Phi`` where the condition number of ``g`` changes.
        kappas: the least and the largest condition number.
        accuracies: the least and the largest ``eps``; of the strongly convex ``Phi``, the least and the largest ``mu_x``.

    Returns:
        the file.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> from metalearn.theory import draw_complexity
        >>> draw_complexity("bounds.png").name
        'bounds.png'
    """
    file = read_path("path", path, "use 'bounds.png'")
    check_symbols("draw_complexity", kappa=kappa, eps=eps, mu_x=mu_x, steps=None)
    over_kappa = _spread("kappas", kappas, 1.0, 1e12, (1.0, 1000.0))
    over_eps = _spread("accuracies", accuracies, 1e-12, 1.0, (1e-6, 0.1))
    plt = pyplot()
    with plt.style.context("metalearn.reports.plain"):
        figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.4), layout="constrained", sharey="row")
        panels: tuple[tuple[Any, tuple[str, ...], Any, Callable[[float], dict[str, float]]], ...] = (
            (axes[0, 0], NONCONVEX, over_kappa, lambda value: {"kappa": value, "eps": eps}),
            (axes[0, 1], NONCONVEX, over_eps, lambda value: {"kappa": kappa, "eps": value}),
            (axes[1, 0], CONVEX, over_kappa, lambda value: {"kappa": value, "eps": eps, "mu_x": mu_x}),
            (axes[1, 1], CONVEX, over_eps, lambda value: {"kappa": kappa, "eps": eps, "mu_x": value}),
        )
        for axis, names, places, symbols in panels:
            _draw_panel(axis, names, places, symbols)
        label = "condition number of g, k = L/mu"
        calls = "oracle calls (order)"
        axes[0, 0].set(xlabel=label, ylabel=calls, title=f"nonconvex Phi, accuracy eps = {eps:g}")
        axes[0, 1].set(xlabel="accuracy eps of |grad Phi|^2", title=f"nonconvex Phi, k = {kappa:g}")
        axes[1, 0].set(xlabel=label, ylabel=calls, title=f"strongly convex Phi, mu_x = {mu_x:g}")
        axes[1, 1].set(xlabel="strong convexity mu_x of Phi", title=f"strongly convex Phi, k = {kappa:g}")
        for axis in axes[:, 1]:
            axis.invert_xaxis()
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, file)


def _draw_panel(axis: Any, names: tuple[str, ...], places: Any, symbols: Callable[[float], dict[str, float]]) -> None:
    """The bounds of these names, equal ones as one line; below the largest lower bound no method can be."""
    curves: dict[tuple[float, ...], tuple[str, str]] = {}
    for name in names:
        rows = [complexity(name, **symbols(float(place))) for place in places]  # type: ignore[arg-type]
        calls = tuple(float(row.total or 0) for row in rows)
        before = curves.get(calls)
        curves[calls] = (rows[0].bound, f"{before[1]}; {name}" if before else name)
    upper, lower = (
        [(calls, name) for calls, (kind, name) in curves.items() if kind == bound] for bound in ("upper", "lower")
    )
    for (calls, name), (colour, line) in zip(upper, COLOURS, strict=False):
        axis.plot(places, calls, color=colour, linestyle=line, label=name)
    for (calls, name), line in zip(lower, ("--", ":"), strict=False):
        axis.plot(places, calls, color="0.25", linestyle=line, label=name)
    axis.set(xscale="log", yscale="log")
    axis.margins(x=0)
    bottom = axis.get_ylim()[0]
    highest = np.max([calls for calls, _ in lower], axis=0)
    axis.fill_between(places, bottom, highest, color="0.88", label="below the lower bound", zorder=0)
    axis.set_ylim(bottom=bottom)


def _spread(name: str, ends: Any, least: float, most: float, example: tuple[float, float]) -> Any:
    """Places between two ends, spread evenly on a logarithmic axis."""
    check_numbers(name, ends, f"use {example}", 2)
    for end in ends:
        check_number(name, end, f"use {example}", least=least, most=most)
    if not ends[0] < ends[1]:
        raise ConfigError(f"{name} is {ends}, but the first must be the smaller; use {example}")
    return np.geomspace(float(ends[0]), float(ends[1]), POINTS)
