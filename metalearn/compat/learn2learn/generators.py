"""The global random generators of ``random``, NumPy and torch, which learn2learn draws from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["borrow_generators", "seed_generators"]


@contextlib.contextmanager
def borrow_generators() -> Iterator[None]:
    """Put the global generators' states back at the end, whatever was drawn from them."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002, learn2learn's
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)


def seed_generators(words: np.ndarray) -> None:
    """Seed the global generators from three 64-bit words."""
    random.seed(int(words[0]))
    np.random.seed(words[1:2].view(np.uint32))  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would seed the GPUs' too
