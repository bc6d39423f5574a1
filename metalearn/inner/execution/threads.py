"""Parts of a meta-batch, one after another or on several threads.

On a CPU small convolutions do not fill several cores, and Python's own work leaves them idle; tasks know nothing of each
other, so threads take a share of them each, with one kernel thread (or a few) of its own. ``functional_call`` swaps the
parameters of the module that it calls, so that every thread calls a copy of the network: of its structure alone, the tensors
are shared.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.plan import Plan
from metalearn.inner.losses import share_loss

__all__ = ["run_parts"]

Result = TypeVar("Result")


def run_parts(
    part: Callable[[Adaptation, int, int], Result], adaptation: Adaptation, tasks: int, plan: Plan
) -> list[Result]:
    """``part(adaptation, first, last)`` for consecutive ranges that cover ``range(tasks)``, in their order."""
    adaptation = replace(adaptation, stacked=plan.tasks is not None)
    size = plan.tasks or 1
    ranges = [(first, min(first + size, tasks)) for first in range(0, tasks, size)]
    workers = min(plan.workers, len(ranges))
    if workers <= 1:
        return [part(adaptation, first, last) for first, last in ranges]
    device = "cpu"  # threads are for the CPU alone
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    adaptations = _copy_for_threads(adaptation, workers)

    def share(worker: int) -> list[Result]:
        own = adaptations[worker]
        with torch.enable_grad(), torch.autocast(device, dtype, enabled=autocast, cache_enabled=False):
            return [part(own, first, last) for first, last in ranges[worker::workers]]

    pool = _pool(workers, torch.get_num_threads())
    running = [pool.submit(contextvars.copy_context().run, share, worker) for worker in range(workers)]
    wait(running)  # where one fails, the others are not left running beside whatever comes next
    shares = [future.result() for future in running]
    return [shares[index % workers][index // workers] for index in range(len(ranges))]


def _copy_for_threads(adaptation: Adaptation, workers: int) -> list[Adaptation]:
    """The inner loop for each thread, over layers and a loss of the thread's own."""
    learners = [adaptation.learner.for_worker(worker) for worker in range(workers)]
    for learner in learners:
        learner.network  # noqa: B018  # made before any thread runs, since a running one swaps the parameters of its layers
    losses = [share_loss(adaptation.loss) if worker else adaptation.loss for worker in range(workers)]
    return [replace(adaptation, learner=learner, loss=loss) for learner, loss in zip(learners, losses, strict=True)]


@lru_cache(maxsize=4)
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Threads that share the kernel threads of the caller among them."""
    pool = ThreadPoolExecutor(workers, "metalearn", _use_threads, (max(threads // workers, 1),))
    barrier = Barrier(workers)
    list(pool.map(lambda _: barrier.wait(), range(workers)))  # each thread starts, and sets its own number
    torch.set_num_threads(threads)  # the setting is a thread's own, but the last one is the default of new threads
    return pool


def _use_threads(count: int) -> None:
    """Set this thread's own number of kernel threads."""
    torch.get_num_threads()  # the first question takes over the process's number, and would otherwise do so later
    torch.set_num_threads(count)
