"""Two checkouts of this project, row by row: a process a side, asked in turn for one timed step each.

Within a pair of steps other load on the machine falls on both sides, so the median of the ratios within pairs is what counts. The
first of a pair changes from pair to pair. Both sides get the memory allocator's settings that our command line sets.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import largest_difference
from rows import ROWS

from metalearn.modules.training.precision import multiplies_bf16

__all__ = ["compare_checkouts"]

HERE = Path(__file__).resolve().parent
KEEPS_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}


class Side:
    """The worker process of a checkout.

    Args:
        checkout: its folder.
        threads: of the worker.
    """

    def __init__(self, checkout: Path, threads: int) -> None:
        if not (checkout / "metalearn" / "__init__.py").is_file():
            raise SystemExit(
                f"--against is {checkout}, but it must be the folder of a checkout; it has no metalearn/ in it"
            )
        environment = {**os.environ, **KEEPS_BUFFERS, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "rows.py"), str(checkout), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment, cwd=checkout,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        """The worker's answer to a request, see ``rows.py``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            self._log.seek(0)
            raise SystemExit(f"a worker ended:\n{self._log.read().decode()[-4000:]}") from error

    def close(self) -> None:
        """End the worker."""
        self._process.communicate()
        self._log.close()


def compare_checkouts(other: Path, names: Sequence[str], rounds: int, warmup: int, threads: int) -> bool:
    """Print a table of this checkout's rows beside another's.

    Args:
        other: the folder of the other checkout.
        names: of :data:`rows.ROWS`.
        rounds: pairs of steps a row.
        warmup: pairs before them that are not counted.
        threads: of each side.

    Returns:
        whether no row is slower by more than 3 %.
    """
    sides = [Side(HERE.parent, threads), Side(other.resolve(), threads)]
    slower = []
    print(f"| {'row':44} | this, ms | other, ms | this / other | 95 % of the median | difference |")
    print(f"|{'-' * 46}|---------:|----------:|-------------:|-------------------:|-----------:|")
    for name in names:
        if ROWS[name].bf16 and not multiplies_bf16():
            print(f"| {ROWS[name].title:44} | the CPU has no bf16 arithmetic")
            continue
        ours, theirs = time_pairs(sides, name, rounds, warmup)
        ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
        ratio, (low, high) = statistics.median(ratios), median_interval(ratios)
        slower += [ROWS[name].title] if ratio > 1.03 else []
        print(
            f"| {ROWS[name].title:44} | {1000 * statistics.median(ours):8.0f} | {1000 * statistics.median(theirs):9.0f} "
            f"| {ratio:12.3f} | {f'{low:.3f} to {high:.3f}':>18} | {compare_values(sides, name):10.0e} |",
            flush=True,
        )
    for side in sides:
        side.close()
    print(f"\nslower by more than 3 %: {', '.join(slower) or 'no row'}")
    return not slower


def time_pairs(sides: Sequence[Side], name: str, rounds: int, warmup: int) -> tuple[list[float], list[float]]:
    """Seconds of a step of each side, pair by pair."""
    for side in sides:
        side.ask(do="build", row=name)
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(warmup + rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            taken = sides[index].ask(do="step")
            if number >= warmup:
                seconds[index].append(taken)
    return seconds


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with a probability of at least 95 %, or the extremes."""
    count = len(ordered)
    below, rank = 0.0, 0
    while rank < count // 2:  # the number of values below the median is binomial
        below += math.comb(count, rank) / 2**count
        if below > 0.025:
            break
        rank += 1
    first = max(rank - 1, 0)
    return ordered[first], ordered[count - 1 - first]


def compare_values(sides: Sequence[Side], name: str) -> float:
    """The largest difference of a tensor that both sides name alike, in float64, relative to its norm."""
    with tempfile.TemporaryDirectory() as folder:
        values = []
        for number, side in enumerate(sides):
            path = Path(folder) / f"{number}.pt"
            side.ask(do="write", row=name, path=str(path))
            values.append(torch.load(path, weights_only=True))
    ours, theirs = values
    return largest_difference(ours, {key: value for key, value in theirs.items() if key in ours})
