"""What a benchmark prints beside its table: the machine, the versions and the speed of a plain matrix product."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gemm_peak(size: int = 2048, rounds: int = 5) -> float:
    """GFLOP/s of the best of a few float32 products of two square matrices."""
    a, b = torch.randn(2, size, size)
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds) / 1e9


def describe() -> str:
    """One line for the head of a table."""
    return (
        f"{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"GEMM peak {gemm_peak():.0f} GFLOP/s"
    )


def load_pyplot() -> Any:
    """matplotlib.pyplot, drawing into files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt
