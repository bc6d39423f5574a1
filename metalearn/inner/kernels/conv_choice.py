"""Chooses how convolutions of many tasks are computed on devices other than the CPU, by timing each product once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.checks import check_choice
from metalearn.inner.kernels.paths import PATHS, Path
from metalearn.inner.kernels.plain_conv import Geometry, as_channels_last, compute_output_size

__all__ = ["CHOICE", "VARIABLE", "ConvChoice", "Product", "may_be_timed", "measure"]

Product = Literal["output", "input gradient", "weight gradient"]
Measure = Callable[[Callable[[], Tensor]], float]

VARIABLE = "METALEARN_CONVOLUTION"
"""The environment variable that names a path, which is then taken on every device, unmeasured."""
FIRST = next(iter(PATHS))
MOST_TIMED = 256
"""Products that are timed in a run: tasks of ever new shapes are not."""
MOST_BYTES = 2 << 30
"""Of patches: with more of them they are not tried."""
REPEATS = 3


def measure(run: Callable[[], Tensor]) -> float:
    """Seconds of a computation, once it is warm."""
    device = run().device
    run()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            begin.record()
            for _ in range(REPEATS):
                run()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1000 / REPEATS
    _wait_for(device)
    begun = time.perf_counter()
    for _ in range(REPEATS):
        run()
    _wait_for(device)
    return (time.perf_counter() - begun) / REPEATS


class ConvChoice:
    """Remembers for every product, shape, type and device which path is fastest.

    Deterministic runs (``torch.use_deterministic_algorithms``, ``torch.backends.cudnn.deterministic``) take the first path
    unmeasured, since two runs might else choose differently. So does whatever runs while a graph is captured or traced.

    Args:
        measure: gives the seconds of a computation.

    Attributes:
        forced: the path that is always taken; ``None`` for none.
    """

    def __init__(self, measure: Measure = measure) -> None:
        self._measure = measure
        self._chosen: dict[tuple[object, ...], str] = {}
        self._lock = threading.Lock()
        self.forced = os.environ.get(VARIABLE) or None
        if self.forced is not None:
            check_choice(VARIABLE, self.forced, list(PATHS))

    @contextlib.contextmanager
    def forcing(self, path: str | None) -> Iterator[None]:
        """Within this context this path is always taken, in every thread; with ``None`` what is fastest."""
        before, self.forced = self.forced, path
        try:
            yield
        finally:
            self.forced = before

    def run(
        self, product: Product, compute: Callable[[Path], Tensor], x: Tensor, weight: Tensor, geometry: Geometry
    ) -> Tensor:
        """Compute a product by the path that is fastest for it.

        Args:
            product: which of the three.
            compute: computes it by a path.
            x: ``[B, n, C, H, W]``.
            weight: ``[B, D, C / groups, h, w]``.
            geometry: of the convolution.
        """
        return compute(PATHS[self.forced or self._find(product, compute, x, weight, geometry)])

    def describe(self) -> str | None:
        """One line on what was measured; ``None`` if nothing was."""
        if not self._chosen:
            return None
        counts = Counter(self._chosen.values())
        parts = ", ".join(f"{counts[name]} {name}" for name in PATHS if counts[name])
        return (
            f"convolutions of several tasks: of {len(self._chosen)} products, each timed once, the fastest are {parts}; "
            f"{VARIABLE}={FIRST} takes one way for all"
        )

    def _find(
        self, product: Product, compute: Callable[[Path], Tensor], x: Tensor, weight: Tensor, geometry: Geometry
    ) -> str:
        if _is_deterministic():
            return FIRST
        key = (product, x.shape, weight.shape, x.dtype, x.device, geometry)
        if key in self._chosen:
            return self._chosen[key]
        if not may_be_timed(x) or len(self._chosen) >= MOST_TIMED:
            return FIRST
        with self._lock:  # a backward pass runs in a thread of autograd's own
            if key not in self._chosen:
                self._chosen[key] = self._time(product, compute, _count_bytes(x, weight, geometry))
        return self._chosen[key]

    def _time(self, product: Product, compute: Callable[[Path], Tensor], patches: int) -> str:
        seconds = {}
        for name, path in PATHS.items():
            if name == "patches" and patches > MOST_BYTES:
                continue

            def run(path: Path = path) -> Tensor:
                result = compute(path)
                # normalisation and pooling, which follow, take this order
                return result if product == "weight gradient" else as_channels_last(result)

            try:
                seconds[name] = self._measure(run)
            except torch.OutOfMemoryError:  # a path that does not fit is no path; if none does, the step itself says so
                continue
        return min(seconds, key=seconds.__getitem__) if seconds else FIRST


def _is_deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic


def may_be_timed(x: Tensor) -> bool:
    """Whether it holds numbers on a device that is not recording what it is asked for."""
    if type(x) not in (Tensor, nn.Parameter) or x.device.type in ("cpu", "meta"):
        return False
    if torch.compiler.is_compiling():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _count_bytes(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """Of the patches of the output, and of those of the input's gradient."""
    tasks, count, channels = x.shape[:3]
    kernel = weight.shape[-2] * weight.shape[-1]
    height, width = compute_output_size(x, weight, geometry)
    of_output = channels * height * width
    of_gradient = weight.shape[1] * x.shape[-2] * x.shape[-1]
    return tasks * count * kernel * max(of_output, of_gradient) * x.element_size()


def _wait_for(device: torch.device) -> None:
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


CHOICE = ConvChoice()
"""That of this process."""
