"""Everything about our inner loop on a GPU, in one command that ends in time: gradients, rows of times, a profile, a long run.

Each part writes its numbers to ``results.json`` in the folder of ``--output`` as soon as it has them, so that a run that is cut
off has left what it had. The long run goes on from the folder's checkpoint. Needs torch, Lightning and the checkout alone.

PYTHONPATH=. python benchmarks/gpu.py --minutes 9 --root DIR    (DIR holds Omniglot's two zip files; without it no long run)
PYTHONPATH=. python benchmarks/gpu.py --device cpu --toy        (tries every line in seconds, and measures nothing)
PYTHONPATH=. python benchmarks/gpu.py --device cpu --parts count    (operators, FLOPs and bytes of a step, without running it)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_profile import count_operators, find_peaks, profile_step
from gpu_rows import Row, few, list_rows, make_module, place, vmap_gradient
from gpu_run import check_guard, make_data, train
from measure import largest_difference, take_turns
from systems import reference_gradient
from works import WORKS, Work, flops, network, noise

from metalearn.inner.kernels import batch_norm, conv
from metalearn.inner.kernels.conv_choice import CHOICE
from metalearn.inner.kernels.paths import PATHS

PARTS = ("check", "time", "profile", "count", "run")
BASE = "learn2learn 0.2.0"
AT_A_TIME = 6
"""Rows that are on the device together."""
SHARE = 0.6
"""Of the time, for all parts before the long run."""


class Report:
    """Prints lines, and keeps all numbers in a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.json"
        self.values: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def keep(self, part: str, name: str, value: Any) -> None:
        self.values.setdefault(part, {})[name] = value
        self.path.write_text(json.dumps(self.values, indent=1, default=str))

    def attempt(self, part: str, name: str, run: Callable[[], Any]) -> Any:
        """What ``run`` gives; an error is printed and kept in its place, since machines like this one are lent for minutes."""
        try:
            value = run()
        except Exception as error:
            value = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
            print("".join(traceback.format_exception(error)[-6:]), flush=True)
        self.keep(part, name, value)
        return value


def check(works: list[Work], options: argparse.Namespace, report: Report) -> None:
    """Gradients on the device in float64 against a plain loop on the CPU, and how far shorter types are from it."""
    print("\n### Gradients: relative error against a plain loop in float64\n")
    print("| work | way | error |\n|---|---|---:|", flush=True)
    ways: dict[str, tuple[dict[str, Any], str | None]] = {
        **{name: ({}, name) for name in PATHS}, "fastest": ({}, None), "sequential": ({"execution": "sequential"}, None),
        "remat": ({"memory": "remat"}, None), "recorded": ({"compile": "graph"}, None),
        "recorded, remat": ({"compile": "graph", "memory": "remat"}, None),
    }  # fmt: skip
    for work in works:
        if work.steps > 5:
            continue
        exact = reference_gradient(work)
        steps = min(work.steps, 2)

        def compare(
            settings: dict[str, Any], path: str | None, dtype: torch.dtype = torch.float64, bf16: bool = False,
            work: Work = work, exact: Any = exact, steps: int = steps,
        ) -> float:  # fmt: skip
            module = make_module(work, options.device, dtype, steps, **settings)
            episode = place(few(noise(work)), options.device, dtype)
            with (
                CHOICE.forcing(path),
                torch.autocast(options.device, torch.bfloat16, enabled=bf16, cache_enabled=False),
            ):
                grads = [module.meta_gradient(episode) for _ in range(3)][-1]  # the third is replayed
            found = {name.removeprefix("backbone."): value.cpu() for name, value in grads.items()}
            return largest_difference(found, exact)

        def compare_vmap(work: Work = work, exact: Any = exact, steps: int = steps) -> float:
            net = network(work).to(options.device, torch.float64)
            episode = place(few(noise(work)), options.device, torch.float64)
            found = vmap_gradient(work, net, episode, steps).gradient()
            return largest_difference({name: value.cpu() for name, value in found.items()}, exact)

        runs: dict[str, Callable[[], float]] = {
            name: lambda way=way: compare(*way)
            for name, way in ways.items()
            if work.order == 2 or "memory" not in way[0]
        }
        runs |= {
            "float32": lambda: compare({}, None, torch.float32),
            "bf16": lambda: compare({}, None, torch.float32, True),
            "recorded, float32": lambda: compare({"compile": "graph"}, None, torch.float32),
        }
        if work.algorithm == "maml":
            runs["torch.func vmap, norm by hand"] = compare_vmap
        for name, run in runs.items():
            if not _is_asked_for(name, options):
                continue
            value = report.attempt("check", f"{work.name}: {name}", run)
            print(f"| {work.name} | {name} | {value if isinstance(value, str) else format(value, '.0e')} |", flush=True)
    guard = report.attempt("check", "guard", lambda: check_guard(works[0], options.device, options.output))
    print(f"\nA spoiled step: {guard}", flush=True)


def measure(works: list[Work], options: argparse.Namespace, report: Report) -> None:
    """Milliseconds of a step, several steps in a row between two waits for the device; a few rows at a time take turns."""
    for work in works:
        print(f"\n### {work.title}\n", flush=True)
        rows = list_rows(work, options.compile)
        values: dict[str, dict[str, float]] = {}
        for first in range(0, len(rows), AT_A_TIME):
            wanted = [row for row in rows[first : first + AT_A_TIME] if _is_asked_for(row.name, options)]
            values |= _measure_rows(wanted, work, options, report)
        base = values.get(BASE)
        print("| row | ms a step | min | max | peak MB | speed, learn2learn = 1 | convolutions, TFLOP/s |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, row in values.items():
            report.keep("time", f"{work.name}: {name}", row)
            ratio = f"{base['ms'] / row['ms']:.2f}" if base else "-"
            print(f"| {name} | {row['ms']:.2f} | {row['min']:.2f} | {row['max']:.2f} | {row['peak MB']:.0f} | {ratio} | "
                  f"{row['TFLOP/s']:.2f} |", flush=True)  # fmt: skip


def _measure_rows(
    rows: list[Row], work: Work, options: argparse.Namespace, report: Report
) -> dict[str, dict[str, float]]:
    """The numbers of some rows; what they hold on the device is given up afterwards."""
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, float] = {}
    on_gpu = options.device == "cuda"
    for row in rows:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if on_gpu else 0

        def make(row: Row = row) -> bool:
            steps[row.name] = _build(row, work, options)
            return True

        if report.attempt("built", f"{work.name}: {row.name}", make) is True:
            peaks[row.name] = (torch.cuda.max_memory_allocated() - held) / 1e6 if on_gpu else float("nan")
    seconds = take_turns(steps, options.rounds, 1, options.device)
    return {
        name: {
            "ms": 1000 * statistics.median(spent) / options.burst, "min": 1000 * min(spent) / options.burst,
            "max": 1000 * max(spent) / options.burst, "peak MB": peaks[name],
            "TFLOP/s": flops(work) * options.burst / statistics.median(spent) / 1e12,
        }
        for name, spent in seconds.items()
    }  # fmt: skip


def _is_asked_for(name: str, options: argparse.Namespace) -> bool:
    """Whether a row or a check is wanted, and there is time for it."""
    if options.rows and not any(word in name for word in options.rows):
        return False
    if time.monotonic() < options.deadline:
        return True
    print(f"{name}: left out, since {SHARE:.0%} of the time is up", flush=True)
    return False


def _build(row: Row, work: Work, options: argparse.Namespace) -> Callable[[], None]:
    """Several steps of a row, which has found out how to run."""
    step = row.build(work, options.device)
    for _ in range(3):  # the second is recorded, the third is replayed
        step()

    def burst() -> None:
        for _ in range(options.burst):
            step()

    return burst


def show_profile(works: list[Work], options: argparse.Namespace, report: Report) -> None:
    """The device's peaks, and what a step launches."""
    peaks = report.attempt("profile", "peaks", lambda: find_peaks(options.device, 128 if options.toy else 8192))
    print(f"\nPeaks: {peaks}", flush=True)
    for work in works:
        for row in (Row("ours"), Row("ours, recorded", {"compile": "graph"})):

            def run(row: Row = row, work: Work = work) -> dict[str, Any]:
                step = row.build(work, options.device)
                for _ in range(3):
                    step()
                return profile_step(step, options.device)

            values = report.attempt("profile", f"{work.name}: {row.name}", run)
            if isinstance(values, str):
                continue
            print(f"\n### {work.name}: {row.name}: {values['wall_ms']:.1f} ms under the profiler, device busy "
                  f"{values['busy_ms']:.1f} ms, {values['launches']} launches, {values['kernels']} kernels\n")  # fmt: skip
            print("| kernel | share | calls |\n|---|---:|---:|")
            for entry in values["top"]:
                print(f"| {entry['name']} | {entry['share']:.1%} | {entry['calls']} |", flush=True)


def count(works: list[Work], options: argparse.Namespace, report: Report) -> None:
    """Operators, FLOPs and bytes of a step as a GPU runs it, all tasks at once; nothing is computed, and no GPU is needed."""
    print(
        "\n| work | convolutions | operators that are no views | GFLOP | GB read and written |\n|---|---|---:|---:|---:|"
    )
    for work in works:
        for path in PATHS:

            def run(path: str = path, work: Work = work) -> dict[str, float]:
                module = make_module(work, "cpu", torch.float32, tasks_at_once=work.tasks, execution="vectorized")
                module.meta_gradient(place(few(noise(work)), "cpu", torch.float32))  # finds out how to run
                with CHOICE.forcing(path), as_on_gpu():
                    return count_operators(module, place(noise(work), "cpu", torch.float32))

            values = report.attempt("count", f"{work.name}: {path}", run)
            if not isinstance(values, str):
                # torch counts a grouped convolution as if it had no groups
                gflop = "-" if path == "grouped" else f"{values['GFLOP']:.0f}"
                print(
                    f"| {work.name} | {path} | {values['operators']:.0f} | {gflop} | {values['GB']:.1f} |", flush=True
                )


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within this context a step takes the ways of a GPU on a CPU: nothing in turns, nothing in pieces."""
    pieces = sys.modules["metalearn.inner.kernels.pooled_product"]
    before = conv.on_cpu, batch_norm.on_cpu, pieces.AT_ONCE
    conv.on_cpu = batch_norm.on_cpu = lambda x: False
    pieces.AT_ONCE = 1 << 62
    try:
        yield
    finally:
        conv.on_cpu, batch_norm.on_cpu, pieces.AT_ONCE = before


def run_long(options: argparse.Namespace, report: Report, deadline: float) -> None:
    """The long run, if there are data."""
    data = make_data(
        options.root, options.toy, 2 if options.toy else options.tasks, 0 if options.toy else options.workers
    )
    if data is None:
        print("\nNo long run: --root names no folder of Omniglot's zip files", flush=True)
        return
    hidden = 8 if options.toy else 64
    values = report.attempt("run", "5w1s", lambda: train(
        data, options.output, options.iterations, deadline, options.device, hidden, "graph",
    ))  # fmt: skip
    print(f"\nLong run: {values}", flush=True)


def shrink(work: Work) -> Work:
    """The same work in small."""
    size = 16 if work.channels == 1 else 32
    return replace(work, tasks=2, queries=1, steps=min(work.steps, 2), hidden=8, size=size)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--toy", action="store_true", help="everything in small, and drawn data")
    parser.add_argument("--parts", nargs="*", default=["check", "time", "profile", "run"], choices=PARTS)
    parser.add_argument("--works", nargs="*", default=["second_order", "anil", "miniimagenet"], choices=list(WORKS))
    parser.add_argument("--rows", nargs="*", help="words of which a row's name, or a check's, must contain one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--burst", type=int, default=5, help="steps between two waits for the device")
    parser.add_argument("--compile", action="store_true", help="compiled rows too: minutes each")
    parser.add_argument("--root", help="the folder of Omniglot's two zip files")
    parser.add_argument(
        "--iterations", type=int, default=60_000, help="outer steps of the long run, all sessions together"
    )
    parser.add_argument("--tasks", type=int, default=32, help="of an outer step of the long run")
    parser.add_argument("--workers", type=int, default=6, help="processes that draw tasks for it")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="after which the long run ends, from the start of all"
    )
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="the folder of numbers and checkpoint")
    return parser.parse_args()


def main() -> None:
    begun = time.monotonic()
    options = read_options()
    warnings.filterwarnings("ignore")
    options.deadline = begun + 60 * options.minutes * SHARE
    options.output.mkdir(parents=True, exist_ok=True)
    report = Report(options.output)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report.keep("machine", "torch", torch.__version__)
    report.keep("machine", "device", name)
    print(f"{name}, torch {torch.__version__}", flush=True)
    works = [shrink(WORKS[name]) if options.toy else WORKS[name] for name in options.works]
    parts: dict[str, Callable[[], None]] = {
        "check": lambda: check(works, options, report),
        "time": lambda: measure(works, options, report),
        "profile": lambda: show_profile(works, options, report),
        "count": lambda: count(works, options, report),
        "run": lambda: run_long(options, report, begun + 60 * options.minutes - (0 if options.toy else 30)),
    }
    for part in options.parts:
        started = time.monotonic()
        parts[part]()
        report.keep("seconds", part, time.monotonic() - started)
        print(f"\n({part}: {time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
