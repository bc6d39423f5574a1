"""What a precision costs on the machine at hand."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["multiplies_bf16", "say_if_slow"]

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux names them: on x86, and on ARM."""


def multiplies_bf16() -> bool | None:
    """Whether the CPU has instructions that multiply in bf16; ``None`` where neither torch nor the system tells."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)  # newer than the oldest torch that is declared, or may go again
        if supported is not None and supported():
            return True
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return None
    flags = [set(line.split()) for line in lines if line.lower().startswith(("flags", "features"))]
    return any(INSTRUCTIONS & each for each in flags) if flags else None


def say_if_slow(trainer: L.Trainer) -> None:
    """One line where bf16 was asked of a CPU that has to imitate it."""
    precision = str(trainer.precision)
    if precision.startswith("bf16") and trainer.strategy.root_device.type == "cpu" and multiplies_bf16() is False:
        rank_zero_info(
            f"precision is {precision}, but this CPU has no bf16 arithmetic and imitates it, up to six times slower than "
            "float32; use precision=32-true"
        )
