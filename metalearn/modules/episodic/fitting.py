"""How many tasks are run at once, so that they fit into memory: fewer from the start where a limit asks for it, or later on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metalearn.errors import MemoryLimitError
from metalearn.inner import Adaptation, MemoryMode, Plan
from metalearn.inner.ambient import recording
from metalearn.inner.execution.free_memory import is_out_of_memory, read_free_memory
from metalearn.inner.execution.peak import measure_peak
from metalearn.inner.generators import drawing_from, read_generators, set_generators
from metalearn.inner.inner_loop import InnerLoop
from metalearn.modules.episodic.memory_advice import advise_on_memory

__all__ = ["Fitting", "Share"]

Result = TypeVar("Result")

Step = Callable[[int, Plan], Result]
"""``step(tasks, plan)`` runs the first ``tasks`` of a batch; it changes nothing but the random generators."""

log = logging.getLogger("lightning.pytorch.fitting")  # below Lightning's, which shows what is said of a run


class Share(NamedTuple):
    """A batch that is to be run.

    Attributes:
        tasks: how many they are.
        shapes: what its memory depends on beside their number.
        like: a tensor of its device.
        memory: the memory mode.
        evaluating: whether there is no meta-gradient.
    """

    tasks: int
    shapes: Any
    like: Tensor
    memory: MemoryMode
    evaluating: bool

    @classmethod
    def of(cls, tensors: list[Tensor], adaptation: Adaptation, evaluating: bool) -> Share:
        """That of tensors ``[B, ...]``."""
        shapes = tuple((tuple(x.shape[1:]), x.dtype) for x in tensors)
        return cls(len(tensors[0]), shapes, tensors[0], adaptation.memory, evaluating)


class Fitting:
    """Runs steps with as many tasks at once as fit into memory.

    A number that was found stays: half as many where memory has run out, and what a limit allows for tasks of these shapes.

    Args:
        name: of the module, which begins what is said.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bounds: dict[Any, Plan] = {}
        self._limits: dict[Any, Plan] = {}
        self._said: set[str] = set()

    def run(self, step: Step[Result], plan: Plan, share: Share, options: InnerLoop) -> Result:
        """The whole batch; where memory runs out, again with half as many tasks at once, from the same random state.

        Args:
            step: runs the first tasks of the batch.
            plan: how many of them suit the device.
            share: the batch.
            options: of the inner loop, with the limit that was asked for.

        Raises:
            ConfigError: a limit is set, and the system does not tell how much memory is free.
            MemoryLimitError: not even a single task fits.
        """
        key = share.evaluating, share.like.device, options.tasks_at_once
        plan = self._limit(step, plan, share, options)
        plan = plan.within(self._bounds.get(key, plan))
        state = read_generators(share.like)
        while True:
            try:
                return step(share.tasks, plan)
            except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
                if not is_out_of_memory(error):
                    raise
                smaller = plan.halved()
                if smaller is None:
                    raise MemoryLimitError(advise_on_memory(share.memory, share.tasks, share.evaluating)) from error
            # what the failed step held is let go here, where no traceback refers to it any more
            self._say(
                f"memory has run out with {plan.describe()}; {'evaluation' if share.evaluating else 'training'} goes on with "
                f"{smaller.describe()} (tasks_at_once={smaller.tasks} says so from the start)"
            )
            self._bounds[key] = plan = smaller
            _let_go(share.like)
            set_generators(state)

    def _limit(self, step: Step[Any], plan: Plan, share: Share, options: InnerLoop) -> Plan:
        """The plan within the memory limit, if there is one."""
        if options.memory_limit is None:
            return plan
        if options.tasks_at_once is not None:
            self._say_once(
                f"tasks_at_once={options.tasks_at_once} says how many tasks are run at once, and memory_limit does not"
            )
            return plan
        if plan.tasks is None:
            self._say_once("memory_limit bounds tasks that are run together, but they are run one after another")
            return plan
        if share.tasks == 1:
            return plan
        loop = options.inner_steps, options.first_order, options.memory_limit
        key = share.evaluating, share.like.device, share.shapes, share.memory, plan, loop
        if key not in self._limits:
            self._limits[key] = self._find_within(step, plan, share, options.memory_limit)
        return self._limits[key]

    def _find_within(self, step: Step[Any], plan: Plan, share: Share, fraction: float) -> Plan:
        """As many tasks and threads as keep to the limit. Query sets are taken one by one where that lets in more tasks."""
        free = read_free_memory(share.like.device)
        limit = fraction * free
        within, held = None, None
        for queries in dict.fromkeys((plan.queries, plan.queries if share.evaluating else 1)):
            peaks = self._measure_growth(step, plan._replace(queries=queries), share, limit)
            fitting = [count for count, peak in peaks.items() if plan.workers * peak <= limit]
            if fitting and (within is None or max(fitting) > (within.tasks or 1)):
                within = plan._replace(tasks=max(fitting), queries=queries)
                held = peaks[max(fitting)]
            if within is not None and within.tasks == plan.tasks:
                break
        if within is None:
            held = peaks.get(1)
            within = Plan(1, plan.queries, max(1, min(plan.workers, int(limit // max(held or 1, 1)))))
        self._say(_describe_limit(fraction, free, plan, within, held, share.evaluating))
        return within

    def _measure_growth(self, step: Step[Any], plan: Plan, share: Share, limit: float) -> dict[int, int]:
        """The peaks of 1, 2, 4, ... tasks together, up to those of the plan, as long as the next promise to keep to the limit."""
        peaks: dict[int, int] = {}
        tasks, most = 1, plan.tasks or 1
        while tasks not in peaks and plan.workers * _predict(peaks, tasks) <= limit:
            peak = self._measure(step, plan._replace(tasks=tasks, workers=1), share)
            if peak is None:
                break
            peaks[tasks] = peak
            tasks = min(2 * tasks, most)
        return peaks

    def _measure(self, step: Step[Any], plan: Plan, share: Share) -> int | None:
        """Bytes that some tasks hold at their peak; ``None`` where memory has run out. No random generator is moved on."""
        with drawing_from(read_generators(share.like)), recording(False):
            try:
                return measure_peak(lambda: step(plan.tasks or 1, plan), share.like.device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        _let_go(share.like)
        return None

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _say(self, text: str) -> None:
        """On every process, since each has a memory of its own."""
        many = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = f"[rank {torch.distributed.get_rank()}] " if many else ""
        log.info(f"{rank}{self._name}: {text}")


def _predict(peaks: dict[int, int], tasks: int) -> float:
    """What so many tasks may hold: as much more as the last ones held more; 0 before anything is known."""
    if len(peaks) < 2:
        return sum(tasks * peak for peak in peaks.values())
    (before, low), (last, high) = list(peaks.items())[-2:]
    return high + (tasks - last) * (high - low) / (last - before)


def _describe_limit(fraction: float, free: int, plan: Plan, within: Plan, held: int | None, evaluating: bool) -> str:
    """What a limit has come to, in one line."""
    what = "evaluation" if evaluating else "training"
    line = f"memory_limit={fraction:g} of {_write_bytes(free)} free: {what} runs tasks {within.describe()}"
    if within.queries != plan.queries:
        line += ", query sets one by one"
    if held is None:
        return f"{line}, though memory has run out with one"
    line += f", {_write_bytes(held)} {'each' if within.workers > 1 else 'at the peak'}"
    if within.workers * held > fraction * free:
        return f"{line}, which is more; memory='remat' or support_chunk takes less"
    return line if within == plan else f"{line}, where {plan.describe()} suit the device"


def _write_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _let_go(like: Tensor) -> None:
    """Give back what a failed step held: threads leave cycles behind, and a GPU's allocator holds blocks of the old sizes."""
    gc.collect()
    if like.is_cuda:
        torch.cuda.empty_cache()
