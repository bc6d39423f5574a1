"""What to try next when a meta-gradient does not fit into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from metalearn.errors import MemoryLimitError
from metalearn.inner import MemoryMode, Plan

__all__ = ["advising_on_memory"]

SIGNS = ("not enough memory", "allocate memory")
"""What torch says where memory of a CPU runs out, which is no ``OutOfMemoryError``."""


@contextlib.contextmanager
def advising_on_memory(memory: MemoryMode, plan: Plan, tasks: int) -> Iterator[None]:
    """Within this context a lack of memory is one line that says what to try next.

    Args:
        memory: the memory mode of the step.
        plan: how many tasks are run at once.
        tasks: of the batch.

    Raises:
        MemoryLimitError: memory has run out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        raise MemoryLimitError(_advise(memory, plan, tasks)) from error


def _advise(memory: MemoryMode, plan: Plan, tasks: int) -> str:
    at_once = plan.tasks or 1
    line = f"the meta-gradient of {tasks} tasks ({at_once} at once, memory={memory!r}) does not fit into memory; use "
    if memory == "store":
        return line + "memory='remat', which keeps one inner step's activations instead of all"
    if at_once > 1:
        return line + f"tasks_at_once={max(at_once // 2, 1)}"
    return (
        line
        + f"fewer query examples per class, a smaller backbone, or support_chunk (memory={memory!r} is the leanest)"
    )
