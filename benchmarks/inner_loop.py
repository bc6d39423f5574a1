"""Milliseconds per meta-batch and peak memory of our inner loop beside learn2learn, higher and torch.func loops.

The systems take turns in one process: same network, same episodes, same threads. Every system runs under the allocator settings
that its own user gets: ours raises two thresholds of glibc's allocator (--allocator all gives them to the others as well). Peak
memory is measured apart, each system in a process of its own. A gradient is compared with that of a plain loop in float64.

python benchmarks/inner_loop.py                                  (the table of docs/background/performance.md)
python benchmarks/inner_loop.py --quick                          (some of it, within three minutes on two cores)
python benchmarks/inner_loop.py --profile --works second_order   (what bounds it)
python benchmarks/inner_loop.py --memory-profile --works second_order    (which tensors it holds at its peak)
python benchmarks/inner_loop.py --sweep                          (growth with tasks, steps, examples and width; one PNG)
python benchmarks/inner_loop.py --against PATH --rounds 20       (our rows beside those of another checkout)
PYTHONPATH=. python benchmarks/inner_loop.py --device cuda       (on a GPU, with torch >= 2.10; --compile adds compiled rows)
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from against import compare_checkouts
from allocations import Allocator, peak_of_step
from growth import AXES, sweep
from held import show_held
from machine import describe, gemm_peak, load_pyplot
from measure import largest_difference, take_turns
from rows import ROWS
from shares import show_shares
from systems import SYSTEMS, System, build, reference_gradient
from works import WORKS, Work, flops

from metalearn.modules.training.precision import multiplies_bf16

warnings.filterwarnings("ignore")
LEARN2LEARN = "learn2learn 0.2.0"
QUICK: dict[str, Any] = {
    "works": ["second_order", "anil", "miniimagenet", "transformer"],
    "systems": ["ours: auto", LEARN2LEARN, "higher 0.2.1", "torch.func vmap, normalisation by hand"],
    "rounds": 3,
    "warmup": 1,
}
"""What ``--quick`` measures, where it is not asked for otherwise; systems by their whole names."""


def say(text: str) -> None:
    """How far it is: beside the table, not in it."""
    print(text, file=sys.stderr, flush=True)


def measure(work: Work, systems: list[System], options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a system: milliseconds of a forward and backward pass, alternately."""
    say(f"{work.name}: the gradient of the plain loop in float64")
    exact = reference_gradient(work)
    rows: dict[str, dict[str, object]] = {}
    for system in systems:
        say(f"{work.name}: the gradient of {system.name} in float64")
        gradient = build(system, work, "cpu", torch.float64).gradient()
        rows[system.name] = {"system": system.name, "agreement": largest_difference(gradient, exact)}
    if not options.no_timing:
        times = time_systems(work, systems, options)
        base = statistics.median(times[LEARN2LEARN]) if LEARN2LEARN in times else None
        peak, work_flops = gemm_peak() if options.device == "cpu" else None, flops(work)
        for name, spent in times.items():
            middle = statistics.median(spent)
            rows[name] |= {
                "ms": middle, "min": min(spent), "max": max(spent), "ratio": base / middle if base else None,
                "share": work_flops / middle / 1e6 / peak if work_flops and peak and "bf16" not in name else None,
            }  # fmt: skip
    if options.memory:
        for system in systems:
            say(f"{work.name}: the peak memory of {system.name}")
            rows[system.name]["peak"] = peak_of_step(system.name, work.name, options.device)
    return list(rows.values())


def time_systems(work: Work, systems: list[System], options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each system's step, under the allocator settings that its own user gets."""
    allocator = Allocator(options.allocator)
    ours = {system.name for system in systems if system.ours}
    steps: dict[str, Callable[[], None]] = {}
    for system in systems:
        say(f"{work.name}: {system.name} is built")
        steps[system.name] = build(system, work, options.device, torch.float32).step
    turns = itertools.count()

    def prepare(name: str) -> None:
        number, place = divmod(next(turns), len(steps))
        if place == 0:
            say(
                f"{work.name}: round {number + 1} of {options.warmup + options.rounds}, {options.warmup} of them to warm up"
            )
        if number == 0:
            say(f"{work.name}: {name} takes its first step")
        if allocator.use(ours=name in ours):
            steps[name]()  # memory that went back to the kernel with the last settings is fetched again

    seconds = take_turns(steps, options.rounds, options.warmup, options.device, prepare)
    return {name: [1000 * spent for spent in rounds] for name, rounds in seconds.items()}


def show(work: Work, rows: list[dict[str, object]]) -> None:
    print(f"\n### {work.title}\n", flush=True)
    print(f"| {'system':38} | ms/batch |   min |   max | ratio | GEMM share | peak MB | gradient error |")
    print(f"|{'-' * 40}|---------:|------:|------:|------:|-----------:|--------:|---------------:|")
    for row in rows:

        def cell(key: str, form: str, width: int, row: dict[str, object] = row) -> str:
            value = row.get(key)
            return ("-" if value is None else format(value, form)).rjust(width)

        error = float(row["agreement"])  # type: ignore[arg-type]
        cells = [
            f"{row['system']:38}", cell("ms", ".0f", 8), cell("min", ".0f", 5), cell("max", ".0f", 5), cell("ratio", ".2f", 5),
            cell("share", ".0%", 10), cell("peak", ".0f", 7), f"{error:.0e}{' (wrong)' if error > 1e-6 else ''}".rjust(14),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def draw(path: Path, results: dict[str, list[dict[str, object]]], title: str) -> None:
    """Bars of the ratio to learn2learn, a panel a work."""
    plt = load_pyplot()
    shown = {name: [row for row in rows if row.get("ratio")] for name, rows in results.items()}
    shown = {name: rows for name, rows in shown.items() if rows}
    if not shown:
        return
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(8, 0.8 + sum(0.28 * len(rows) + 0.9 for rows in shown.values())),
        gridspec_kw={"height_ratios": [len(rows) + 2 for rows in shown.values()]}, squeeze=False,
    )  # fmt: skip
    for axis, (name, rows) in zip(axes[:, 0], shown.items(), strict=True):
        names = [str(row["system"]) for row in rows][::-1]
        ratios = [float(row["ratio"]) for row in rows][::-1]  # type: ignore[arg-type]
        colours = ["tab:blue" if name.startswith("ours") else "tab:grey" for name in names]
        bars = axis.barh(names, ratios, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(WORKS[name].title.replace(": ", ":\n", 1), fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.margins(x=0.12)
    axes[-1, 0].set_xlabel("speed, learn2learn = 1")
    figure.text(0.01, 0.003, title, fontsize=7)
    figure.tight_layout(rect=(0, 0.012, 1, 1))
    figure.savefig(path, dpi=140)
    print(f"\n{path}")


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few works, systems and rounds")
    parser.add_argument("--rounds", type=int, help="7, with --quick 3")
    parser.add_argument("--warmup", type=int, help="rounds before them: 2, with --quick 1")
    parser.add_argument("--works", nargs="*", choices=list(WORKS))
    parser.add_argument("--systems", nargs="*", default=None, help="their names, or words that these contain")
    parser.add_argument(
        "--allocator", choices=["own", "all", "none"], default="own", help="who gets the raised thresholds"
    )
    parser.add_argument("--bf16", action="store_true", help="rows in bf16 also where the CPU only imitates it")
    parser.add_argument("--compile", action="store_true", help="compiled rows too: minutes each on a CPU")
    parser.add_argument("--memory", action="store_true", help="peak memory too, each system in a process of its own")
    parser.add_argument("--no-timing", action="store_true", help="gradient agreement alone")
    parser.add_argument("--sweep", action="store_true", help="growth with tasks, steps, examples and width instead")
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES), help="of the sweep")
    parser.add_argument("--profile", action="store_true", help="the operators of our step instead, on one thread")
    parser.add_argument(
        "--memory-profile", action="store_true", help="what a thread of our step holds at its peak instead"
    )
    parser.add_argument("--against", type=Path, help="the folder of another checkout: our rows beside its own instead")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="of --against")
    parser.add_argument("--png", type=Path, default=Path("inner_loop.png"))
    options = parser.parse_args(arguments)
    for name, value in {"rounds": 7, "warmup": 2, "works": list(WORKS)}.items():
        if getattr(options, name) is None:
            setattr(options, name, QUICK[name] if options.quick else value)
    return options


def choose_systems(work: Work, options: argparse.Namespace) -> list[System]:
    """The systems that the options ask for and the work has a row of."""
    return [system for system in SYSTEMS if _is_wanted(system, options) and not system.why_not(work)]


def explain_gaps(work: Work, options: argparse.Namespace) -> None:
    """One line of the systems that are asked for and have no row, with the reasons."""
    gaps = {system.name: system.why_not(work) for system in SYSTEMS if _is_wanted(system, options)}
    named = [f"{name} ({reason})" for name, reason in gaps.items() if reason]
    if named:
        print(f"\nNo row: {'; '.join(named)}.", flush=True)


def _is_wanted(system: System, options: argparse.Namespace) -> bool:
    if "compiled" in system.name and not options.compile:
        return False
    if system.bf16 and not _runs_bf16(options):
        return False
    if options.systems:
        names = {each.name for each in SYSTEMS}
        return any(word == system.name or (word not in names and word in system.name) for word in options.systems)
    return not options.quick or system.name in QUICK["systems"]


def _runs_bf16(options: argparse.Namespace) -> bool:
    return options.bf16 or options.device != "cpu" or multiplies_bf16() is not False


def explain_choice(options: argparse.Namespace) -> None:
    """What is left out, a line a reason."""
    if not _runs_bf16(options):
        print("no rows in bf16: this CPU has no bf16 arithmetic; --bf16 measures them nevertheless", flush=True)
    if options.quick:
        works = [name for name in WORKS if name not in options.works]
        systems = [
            system.name for system in SYSTEMS
            if not _is_wanted(system, options) and "compiled" not in system.name
        ]  # fmt: skip
        print(
            f"--quick leaves out the works {', '.join(works) or 'none'}; the systems {', '.join(systems) or 'none'}",
            flush=True,
        )
        print(
            f"--quick takes {options.rounds} rounds after {options.warmup} to warm up, where a full run takes 7 after 2"
        )
    if any(WORKS[name].backbone == "transformer" for name in options.works):
        print(
            "peers run the transformer with torch's math attention: its fused one has no second derivative", flush=True
        )


def main(arguments: list[str] | None = None) -> None:
    options = read_options(arguments)
    torch.set_num_threads(options.threads)
    head = f"{describe(options.bf16)}, device {options.device}, allocator {options.allocator}"
    print(head, flush=True)
    if options.against:
        same = compare_checkouts(options.against, options.rows, options.rounds, options.warmup, options.threads)
        raise SystemExit(0 if same else 1)
    if options.sweep:
        sweep(options.png.with_name("growth.png"), options.device, head, max(options.rounds // 2, 3), options.axes)
        return
    if options.profile:
        for name in options.works:
            show_shares(name)
        return
    if options.memory_profile:
        for name in options.works:
            show_held(name, options.threads)
        return
    explain_choice(options)
    results = {}
    for name in options.works:
        work = WORKS[name]
        results[name] = measure(work, choose_systems(work, options), options)
        show(work, results[name])
        explain_gaps(work, options)
    draw(options.png, results, head)


if __name__ == "__main__":
    main()
