"""The loader of a problem that needs no data: it counts outer steps."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["StepLoader"]


class StepLoader(DataLoader[int]):
    """The numbers of an epoch's outer steps.

    It has no position of its own, since a step's batches depend on the state alone; Lightning asks for one.
    """

    def __init__(self, steps: int) -> None:
        """Count to a number of steps, without a draw from the global generator."""
        super().__init__(_Numbers(steps), batch_size=None, generator=torch.Generator())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Numbers(Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return number
