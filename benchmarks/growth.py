"""How time and memory of our inner loop grow with the work."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from allocations import peak_above
from machine import load_pyplot
from measure import run_apart, take_turns
from systems import SYSTEMS, build
from works import Work

__all__ = ["AXES", "sweep"]

BASE = Work("growth", tasks=16, queries=5, steps=5, lr=0.01)
AXES: dict[str, tuple[list[int], Callable[[int], Work]]] = {
    "tasks": ([4, 8, 16, 32, 64, 128], lambda n: replace(BASE, tasks=n, steps=1)),
    "inner steps": ([1, 5, 20, 50, 100, 200], lambda n: replace(BASE, tasks=2, steps=n)),
    "support examples a task": ([5, 25, 50, 100], lambda n: replace(BASE, tasks=4, steps=2, shots=n // 5)),
    "filters": ([16, 32, 64, 128], lambda n: replace(BASE, tasks=8, steps=1, hidden=n)),
}
MODES = ["ours: auto", "ours: auto, remat"]

POINT = """
import json, sys
from growth import point
print(json.dumps(point(*json.loads(sys.argv[1]))))
"""


def point(axis: str, value: int, mode: str, device: str, rounds: int, threads: int) -> tuple[float, float]:
    """Milliseconds a meta-batch (median), and MiB that it adds to the peak of the process."""
    import warnings

    from metalearn.cli.allocator import keep_buffers

    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    system = next(system for system in SYSTEMS if system.name == mode)
    running = build(system, AXES[axis][1](value), device, torch.float32)
    peak = peak_above(running.step, device)
    keep_buffers()
    seconds = take_turns({mode: running.step}, rounds, device=device)[mode]
    return 1000 * statistics.median(seconds), peak


def sweep(path: Path, device: str, title: str, rounds: int, axes: list[str]) -> None:
    """Print a table and draw a picture, a panel an axis; every point in a process of its own."""
    plt = load_pyplot()
    figure, panels = plt.subplots(2, len(axes), figsize=(3.2 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        values, _ = AXES[axis]
        print(f"\n| {axis:24} | mode               | ms/batch | ms per unit | peak MB |")
        print(f"|{'-' * 26}|--------------------|---------:|------------:|--------:|")
        for mode in MODES:
            times, peaks = [], []
            for value in values:
                arguments = json.dumps([axis, value, mode, device, rounds, torch.get_num_threads()])
                spent, peak = json.loads(run_apart("-c", POINT, arguments))
                times.append(spent)
                peaks.append(peak)
                print(f"| {value:24} | {mode:18} | {spent:8.0f} | {spent / value:11.2f} | {peak:7.0f} |", flush=True)
            for row, (series, label) in enumerate(((times, "ms per meta-batch"), (peaks, "peak MB"))):
                panels[row][column].loglog(values, series, marker="o", label=mode)
                panels[row][column].set_ylabel(label if column == 0 else "")
        for row in range(2):
            scale = panels[row][column].get_ylim()[0]
            panels[row][column].loglog(values, [scale * value / values[0] for value in values], "k:", label="linear")
            panels[row][column].set_xlabel(axis)
            panels[row][column].grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.text(0.01, 0.01, title, fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=140)
    print(f"\n{path}")
