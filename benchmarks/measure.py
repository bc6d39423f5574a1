"""How benchmarks measure: systems take turns in one process, or a process of its own answers with one line."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["largest_difference", "run_apart", "synchronize", "take_turns"]


def synchronize(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def take_turns(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    device: str = "cpu",
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of each system in each round; the order is turned round from round to round.

    Args:
        steps: what is timed, by the system's name.
        rounds: that count.
        warmup: rounds before them.
        device: waited for before and after a step.
        prepare: called with the system's name before its turn, outside of the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warmup + rounds):
        for name in list(steps) if number % 2 else list(reversed(steps)):
            prepare(name)
            synchronize(device)
            begun = time.perf_counter()
            steps[name]()
            synchronize(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def largest_difference(values: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Of a tensor, relative to its norm, or to a millionth of the largest norm where the tensor vanishes."""
    floor = 1e-6 * max(float(value.norm()) for value in exact.values())
    return max(
        float((values[name].double() - value).norm()) / max(float(value.norm()), floor) for name, value in exact.items()
    )


def run_apart(*arguments: str) -> str:
    """The last line that Python prints with these arguments, in a process of its own in the folder of the benchmarks."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return done.stdout.splitlines()[-1]
