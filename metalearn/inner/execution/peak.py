"""How many bytes of tensors a computation holds at its peak, beside those that were there before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["measure_peak"]


def measure_peak(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that ``function`` holds at its peak, what it returns included.

    On a GPU its allocator counts them, work space of its libraries too. On a CPU every operator of the calling thread is
    watched: what an operator takes for itself and gives back is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _LiveStorages() as live:
        function()
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, as long as they live.

    Attributes:
        peak: the most that lived at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            self._note(value, counts=False)
        outputs = func(*args, **kwargs)
        for value in tree_leaves(outputs):
            self._note(value, counts=True)
        return outputs

    def _note(self, value: Any, counts: bool) -> None:
        """Take note of a tensor's storage, and count it until it is freed if it is new and no argument."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._known:
            return

        def forget(_: Any) -> None:
            self._known.pop(key, None)
            self._bytes -= size

        self._known[key] = weakref.ref(storage, forget)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
