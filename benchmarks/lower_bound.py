"""Outer steps on the worst-case quadratic against its condition number: one table, one picture.

Run: ``python benchmarks/lower_bound.py --picture lower_bound.png`` (about eight minutes on one core).

Each method starts at ``x = y = 0`` and stops at ``|x - x*| <= tolerance |x*|``. Gradient descent (AID-BiO) needs steps in
proportion to the condition number of ``Phi``, AccBiO and AccBiO-BG to its square root; no run may need fewer oracle calls than
the bound of :meth:`metalearn.bilevel.WorstCase.least_calls`.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import NamedTuple

import torch
from machine import load_pyplot

from metalearn.bilevel import AID, CG, Algorithm, BiO, GradientDescent, WorstCase, acc_bio, acc_bio_bg, run, worst_case

NAMES = {"gd": "AID-BiO", "acc": "AccBiO", "bg": "AccBiO-BG"}
SLOPES = {"gd": 1.0, "acc": 0.5, "bg": 0.5}


class Point(NamedTuple):
    """One run: the condition number, outer steps, oracle calls, and the least number of calls."""

    kappa: float
    steps: int
    calls: int
    least: float
    seconds: float


def limit(mu: float) -> float:
    """The condition number of ``Phi`` for ``d`` to infinity, where ``Z^2`` has its eigenvalues ``s`` in ``(0, 4)``."""
    s = torch.linspace(0, 4, 1001, dtype=torch.float64)
    inner = mu / 8 * s + mu
    return float((mu + (1 - mu) / 4 * mu * s / inner + s / (4 * inner**2)).max()) / mu


def instance(kappa: float) -> WorstCase:
    """The worst case, with ``mu_x = mu_y`` and ``L_inner = 1.5 mu_y``, whose condition number is about this."""
    low, high = 1e-4, 0.99
    for _ in range(60):  # it falls as mu grows
        mu = math.sqrt(low * high)
        low, high = (mu, high) if limit(mu) > kappa else (low, mu)
    ratio = worst_case(2, mu_x=mu, mu_y=mu).ratio
    return worst_case(math.ceil(12 / (1 - ratio)), mu_x=mu, mu_y=mu)


def algorithm(name: str, case: WorstCase) -> Algorithm:
    """The method with its step sizes from the instance's constants."""
    constants = case.problem.constants
    if name == "acc":
        return acc_bio(constants, accuracy=1e-5)
    if name == "bg":
        return acc_bio_bg(constants, factor=10)
    L, L_phi = constants.need("gradient descent", "L", "L_phi")
    inner = GradientDescent(step_size=1 / L, steps=1)
    return BiO(estimator=AID(inner=inner, solver=CG(iterations=1)), step_size=1 / L_phi)


def measure(name: str, case: WorstCase, tolerance: float, most: int) -> Point:
    """Run to the tolerance; ``most`` outer steps without it are an error."""
    method, size = algorithm(name, case), case.solution.norm()
    result = run(
        case.problem, method, torch.zeros_like(case.solution), most,
        callback=lambda state, _: bool((method.solution(state) - case.solution).norm() <= tolerance * size),
    )  # fmt: skip
    last = result.history[-1]
    if (result.x - case.solution).norm() > tolerance * size:
        raise SystemExit(
            f"{NAMES[name]} at condition number {case.kappa_x:.0f} has not ended in {most} steps; raise --most"
        )
    calls = last.gc_f + last.gc_g + last.jvp + last.hvp
    return Point(case.kappa_x, last.step, calls, case.least_calls(tolerance), last.seconds)


def slope(points: list[Point]) -> float:
    """Of the line through ``log steps`` over ``log kappa``, by least squares."""
    logs = torch.tensor([(point.kappa, point.steps) for point in points], dtype=torch.float64).log()
    centred = logs - logs.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / (centred[:, 0] ** 2).sum())


def draw(results: dict[str, list[Point]], path: str, tolerance: float) -> None:
    """Steps, and calls over the bound, against the condition number."""
    plt = load_pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, points in results.items():
        kappas = [point.kappa for point in points]
        (line,) = left.loglog(
            kappas, [p.steps for p in points], "o-", label=f"{NAMES[name]}: slope {slope(points):.3f}"
        )
        right.loglog(kappas, [point.calls for point in points], "o-", color=line.get_color(), label=NAMES[name])
    bounds = sorted({(point.kappa, point.least) for points in results.values() for point in points})
    right.loglog(*zip(*bounds, strict=True), "k--", label="lower bound")
    left.set_ylabel(f"outer steps to a relative error of {tolerance:g}")
    right.set_ylabel("oracle calls")
    for panel in (left, right):
        panel.set_xlabel("condition number of Phi")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--least", type=float, default=40.0, help="smallest condition number")
    parser.add_argument("--least-of-gd", type=float, default=10.0, help="the same of AID-BiO, which takes the longest")
    parser.add_argument("--largest-of-gd", type=float, default=1e4, help="largest condition number of AID-BiO")
    parser.add_argument(
        "--largest", type=float, default=4e4, help="largest condition number of the accelerated methods"
    )
    parser.add_argument("--points", type=int, default=7)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--most", type=int, default=1_000_000, help="outer steps after which a run has failed")
    parser.add_argument("--picture", default="", help="where to draw")
    return parser.parse_args()


def measure_all(name: str, options: argparse.Namespace) -> list[Point]:
    """A method at every condition number, a row each."""
    least = options.least_of_gd if name == "gd" else options.least
    largest = options.largest_of_gd if name == "gd" else options.largest
    points = []
    for number in range(options.points):
        kappa = least * (largest / least) ** (number / (options.points - 1))
        begun = time.perf_counter()
        point = measure(name, instance(kappa), options.tolerance, options.most)
        points.append(point)
        print(
            f"| {NAMES[name]:9} | {point.kappa:12.1f} | {point.steps:11} | {point.steps / point.kappa:11.3f} "
            f"| {point.steps / point.kappa**0.5:10.2f} | {point.calls:12} | {point.least:11.0f} "
            f"| {time.perf_counter() - begun:7.1f} |",
            flush=True,
        )
    return points


def agrees(name: str, points: list[Point]) -> bool:
    """Whether a method grows as theory says, and stays above the lower bound; prints a line that says so."""
    beaten = any(point.calls < point.least for point in points)
    print(
        f"{NAMES[name]}: slope {slope(points):.3f}, expected {SLOPES[name]} +- 0.05; "
        f"{'A RUN NEEDED FEWER CALLS THAN THE BOUND' if beaten else 'no run needed fewer calls than the bound'}"
    )
    return not beaten and abs(slope(points) - SLOPES[name]) <= 0.05


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    print(
        "| method    | kappa of Phi | outer steps | steps/kappa | steps/sqrt | oracle calls | lower bound | seconds |"
    )
    print(
        "|-----------|-------------:|------------:|------------:|-----------:|-------------:|------------:|--------:|"
    )
    results = {name: measure_all(name, options) for name in options.methods}
    if options.picture:
        draw(results, options.picture, options.tolerance)
    agreements = [agrees(name, points) for name, points in results.items()]
    if options.picture:
        print(f"picture: {options.picture}")
    if not all(agreements):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
