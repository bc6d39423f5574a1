"""Where the time of a meta-batch goes: the operators of one step on one thread, by torch's profiler."""

from __future__ import annotations

import torch
from systems import SYSTEMS, build
from torch.profiler import ProfilerActivity, profile
from works import WORKS

__all__ = ["show_shares"]

CONVOLUTIONS = ("aten::convolution_backward", "aten::mkldnn_convolution")


def show_shares(work: str, rows: int = 12) -> None:
    """Print each operator's own share of the CPU time, the convolutions' first."""
    torch.set_num_threads(1)
    running = build(
        next(system for system in SYSTEMS if system.name == "ours: auto"), WORKS[work], "cpu", torch.float32
    )
    for _ in range(3):  # the profiler's own buffers must be there too
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            running.step()
    events = [event for event in profiler.key_averages() if event.self_cpu_time_total > 0]
    total = sum(event.self_cpu_time_total for event in events)
    events.sort(key=lambda event: (event.key not in CONVOLUTIONS, -event.self_cpu_time_total))
    print(f"\n### {WORKS[work].title}, one thread, {total / 1000:.0f} ms under the profiler\n")
    print("| operator                                 | share | calls |")
    print("|------------------------------------------|------:|------:|")
    for event in events[:rows]:
        print(f"| {event.key:40} | {event.self_cpu_time_total / total:5.1%} | {event.count:5} |", flush=True)
