"""Who gets which allocator settings, and what a step takes at its peak."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

from metalearn.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_buffers

__all__ = ["Allocator", "peak_of_step"]

ADAPTED = 32 << 20
"""The mmap threshold that glibc's own adaptation ends at, at the most; its trim threshold is then twice that."""

STEP = """
import json, resource, sys, warnings
warnings.filterwarnings("ignore")
import torch
from systems import SYSTEMS, build
from works import WORKS
name, work, device = json.loads(sys.argv[1])
torch.set_num_threads(2)
running = build(next(s for s in SYSTEMS if s.name == name), WORKS[work], device, torch.float32)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
running.step()
running.step()
if device == "cuda":
    print(torch.cuda.max_memory_allocated() / 2**20)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base)
"""


def peak_of_step(system: str, work: str, device: str) -> float:
    """MiB that two steps add to the peak of resident memory (or of memory allocated on a GPU), in a process of its own."""
    arguments = [sys.executable, "-c", STEP, json.dumps([system, work, device])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=sys.path[0])
    return float(done.stdout.split()[-1])


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
