"""What to try next when a single task does not fit into memory."""

from __future__ import annotations

from metalearn.inner import MemoryMode

__all__ = ["advise_on_memory"]


def advise_on_memory(memory: MemoryMode, tasks: int, evaluating: bool) -> str:
    """One line that says what does not fit, and what to try.

    Args:
        memory: the memory mode of the step.
        tasks: of the batch.
        evaluating: whether they are adapted without a meta-gradient.
    """
    what = "adaptation to" if evaluating else "the meta-gradient of"
    kept = "" if evaluating else f", memory={memory!r}"
    line = f"{what} {tasks} {'task' if tasks == 1 else 'tasks'} (1 at once{kept}) does not fit into memory; use "
    if memory == "store" and not evaluating:
        return line + "memory='remat', which keeps one inner step's activations instead of all"
    leanest = "" if evaluating else f" (memory={memory!r} is the leanest)"
    return line + f"fewer query examples per class, a smaller backbone, or support_chunk{leanest}"
