"""The gradient of a part of a meta-batch, compiled.

The whole of :func:`~metalearn.inner.execution.differentiate.differentiate`, its inner and outer derivatives included, is traced
once for every shape into one graph of elementary operators, and that graph is compiled. Nothing in it is left to be
differentiated: inside ``torch.compile`` itself, ``torch.autograd.grad`` would silently drop the second order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.episode import Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import is_own, own_kernels
from metalearn.inner.execution.differentiate import Part, differentiate
from metalearn.inner.execution.flat_part import FlatPart, explain
from metalearn.inner.execution.recorder import Recorder
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.rules import Params

__all__ = ["CompiledPart"]


class CompiledPart(Recorder):
    """Stands in for :func:`metalearn.inner.execution.differentiate.differentiate`; the same arguments, the same result.

    Where the step cannot be traced, or the machine has no compiler, the ordinary one is used from then on.
    """

    def _begin(self) -> None:
        self._compiled: dict[Any, Callable[..., Sequence[Tensor]]] = {}

    def __call__(
        self,
        adaptation: Adaptation,
        params: Params,
        extra: Sequence[Tensor],
        episode: Episode,
        schedule: Schedule,
        queries: int | None = None,
    ) -> Part:
        if not self.works:
            return differentiate(adaptation, params, extra, episode, schedule, queries)
        part = FlatPart(adaptation, params, extra, episode, schedule, queries)
        with torch.no_grad():
            if part.key not in self._compiled:
                try:
                    self._compiled[part.key] = self._compile(part)
                except (
                    Exception
                ) as error:  # whatever tracing or the compiler raise: the ordinary way does not need them
                    self._give_up(f"the step is not compiled, because {explain(error)}; it runs uncompiled")
                    with torch.enable_grad():
                        return differentiate(adaptation, params, extra, episode, schedule, queries)
            outputs = self._compiled[part.key](*part.values)
        return part.join(outputs)

    def _compile(self, part: FlatPart) -> Callable[..., Sequence[Tensor]]:
        begun = time.perf_counter()
        values, run = part.values, part.make_function()
        # the composed normalisation is fused by the compiler, and asks nothing of the data
        with own_kernels(*["conv"] if is_own("conv") else []):
            graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
        on_gpu = values[0].is_cuda
        compiled = torch.compile(graph, dynamic=False, mode="reduce-overhead" if on_gpu else "default")
        with torch.random.fork_rng([values[0].device] if on_gpu else []):
            compiled(*values)  # compiles; the first call's draws are not the run's
        tasks = len(values[-1])
        self._tell(
            f"{tasks} tasks of {list(values[-4].shape[1:])} in {len(graph.graph.nodes)} operators, compiled in "
            f"{time.perf_counter() - begun:.0f} s"
        )
        return _copy_outputs(compiled) if on_gpu else compiled


def _copy_outputs(compiled: Callable[..., Sequence[Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """The same, whose outputs outlive the next call: a graph of CUDA writes them to the same place again."""

    def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()
        return tuple(output.clone() for output in compiled(*inputs))

    return replay
