"""Who gets which allocator settings, and what a step takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import run_apart, synchronize
from torch.profiler import ProfilerActivity, profile

from metalearn.cli.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_buffers

__all__ = ["Allocator", "peak_above", "peak_of_step", "tensor_peak"]

ADAPTED = 32 << 20
"""The mmap threshold that glibc's own adaptation ends at, at the most; its trim threshold is then twice that."""

STEP = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from allocations import peak_above
from systems import SYSTEMS, build
from works import WORKS
name, work, device = json.loads(sys.argv[1])
torch.set_num_threads(2)
running = build(next(s for s in SYSTEMS if s.name == name), WORKS[work], device, torch.float32)
print(peak_above(running.step, device))
"""


def peak_above(step: Callable[[], None], device: str) -> float:
    """MiB that a step adds at its peak to what the process holds anyway; the libraries' own memory is there already.

    On a CPU resident memory, whose peak Linux lets a process set back; on a GPU what the allocator handed out.
    """
    step()
    if device == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - base) / 2**20
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    base = _status("VmRSS")
    step()
    return _status("VmHWM") - base


def tensor_peak(step: Callable[[], object]) -> float:
    """MiB of tensors that a step holds at its peak on a CPU, by the allocator's own events: exact, and without libraries."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(itertools.accumulate(change for _, change in changes)) / 2**20


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak_of_step(system: str, work: str, device: str) -> float:
    """See :func:`peak_above`; in a process of its own, with glibc's own allocator settings."""
    return float(run_apart("-c", STEP, json.dumps([system, work, device])))


class Allocator:
    """Switches glibc's thresholds between turns.

    Args:
        who: ``"own"``: raised in our turns, glibc's defaults in the others'; ``"all"``; or ``"none"``.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.raised: bool | None = None

    def use(self, ours: bool) -> bool:
        """Settings for the turn that comes; whether they changed, so that a turn must warm up first."""
        wanted = self.who == "all" or (self.who == "own" and ours)
        if wanted == self.raised or not sys.platform.startswith("linux"):
            return False
        self.raised = wanted
        if wanted:
            keep_buffers()
            return True
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, ADAPTED)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * ADAPTED)
        libc.malloc_trim(0)
        return True
