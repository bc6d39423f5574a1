"""The states of torch's global random generators: what is computed a second time draws what it drew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Generators", "drawing_from", "read_generators", "set_generators"]

Generators = tuple[Tensor, Tensor | None]
"""The states of the CPU's generator, and of the GPU's where one is used."""


def read_generators(like: Tensor) -> Generators:
    """The states now, of the generators that a computation with ``like`` draws from.

    While a CUDA graph is recorded, the GPU's may not be read. A graph that draws the same numbers twice is then none of the step
    itself, and is found out by its values (``execution/recorded.py``).
    """
    readable = like.is_cuda and not torch.cuda.is_current_stream_capturing()
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if readable else None


def set_generators(state: Generators) -> None:
    """Go on from these states: those of the CPU, and of the current GPU."""
    host, device = state
    torch.set_rng_state(host)
    if device is not None:
        torch.cuda.set_rng_state(device)


@contextlib.contextmanager
def drawing_from(state: Generators) -> Iterator[None]:
    """Draw what was drawn from this state, then go on from where the generators were: dropout keeps its masks."""
    before = torch.get_rng_state(), torch.cuda.get_rng_state() if state[1] is not None else None
    set_generators(state)
    try:
        yield
    finally:
        set_generators(before)
