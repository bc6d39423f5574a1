"""What a benchmark prints beside its table: the machine, the versions and the speed of a plain matrix product."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch

from metalearn.modules.training.precision import multiplies_bf16

CPU_INFO = Path("/proc/cpuinfo")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
"""What decides the speed of products, as Linux names it: on x86, and on ARM."""


def processor() -> str:
    """The processor's name."""
    return _read_cpu("model name") or platform.processor() or platform.machine()


def features() -> str:
    """Those of :data:`FEATURES` that the machine has, and the instructions that torch chose."""
    flags = (_read_cpu("flags") or _read_cpu("Features")).split()
    seen = [name for name in FEATURES if name in flags]
    return f"{', '.join(seen) or 'no features told'}; torch uses {torch.backends.cpu.get_cpu_capability()}"


def _read_cpu(key: str) -> str:
    """What Linux says of the first processor, or nothing."""
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def gemm_peak(size: int = 2048, rounds: int = 5, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of the best of a few products of two square matrices."""
    a, b = torch.randn(2, size, size).to(dtype)
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds) / 1e9


def describe(bf16: bool = False) -> str:
    """One line for the head of a table; the speed of products in bf16 where the CPU has these, or where they are asked for."""
    peaks = f"GEMM peak {gemm_peak():.0f} GFLOP/s"
    if bf16 or multiplies_bf16() is not False:
        peaks += f", in bf16 {gemm_peak(dtype=torch.bfloat16):.0f}"
    else:
        peaks += ", no bf16 arithmetic"
    return (
        f"{processor()} ({features()}), {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {peaks}"
    )


def load_pyplot() -> Any:
    """matplotlib.pyplot, drawing into files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt
