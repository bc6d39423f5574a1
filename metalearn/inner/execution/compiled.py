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

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import is_own, own_kernels
from metalearn.inner.execution.differentiate import Part, differentiate
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.rules import Params, StepSizes

__all__ = ["CompiledPart"]


class CompiledPart:
    """Stands in for :func:`metalearn.inner.execution.differentiate.differentiate`; the same arguments, the same result.

    Where the step cannot be traced, or the machine has no compiler, the ordinary one is used from then on.

    Args:
        say: takes the line that says how long a compilation took, or why there is none.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._given_up = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # is compiled again where it is needed

    def __call__(
        self,
        adaptation: Adaptation,
        params: Params,
        extra: Sequence[Tensor],
        episode: Episode,
        schedule: Schedule,
        queries: int | None = None,
    ) -> Part:
        if self._given_up:
            return differentiate(adaptation, params, extra, episode, schedule, queries)
        sizes = _distinct(schedule.step_sizes)
        inputs = [*params.values(), *sizes, *episode.support, *episode.query]
        key = self._key(adaptation, inputs, schedule, queries)
        with torch.no_grad():
            values = [tensor.detach() for tensor in inputs]
            if key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(adaptation, list(params), schedule, queries, values)
                except (
                    Exception
                ) as error:  # whatever tracing or the compiler raise: the ordinary way does not need them
                    self._given_up = True
                    self._say(f"compile: the step is not compiled, because {_reason(error)}; it runs uncompiled")
                    with torch.enable_grad():
                        return differentiate(adaptation, params, extra, episode, schedule, queries)
            loss, logits, *grads = self._compiled[key](*values)
        count = len(params)
        of_extra: tuple[Tensor, ...] = ()
        if extra:
            chained = [(size, grad) for size, grad in zip(sizes, grads[count:], strict=True) if size.requires_grad]
            roots, cotangents = [size for size, _ in chained], [grad for _, grad in chained]
            of_extra = torch.autograd.grad(roots, list(extra), cotangents, retain_graph=True, materialize_grads=True)
        return Part(loss, logits, (*grads[:count], *(grad.detach() for grad in of_extra)))

    def _key(
        self, adaptation: Adaptation, inputs: Sequence[Tensor], schedule: Schedule, queries: int | None
    ) -> tuple[Any, ...]:
        device = inputs[0].device.type
        shapes = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
        modes = tuple(layer.training for layer in adaptation.learner.network.modules())
        precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return shapes, modes, precision, adaptation.stacked, schedule.steps, schedule.order, queries

    def _compile(
        self,
        adaptation: Adaptation,
        names: list[str],
        schedule: Schedule,
        queries: int | None,
        values: list[Tensor],
    ) -> Callable[..., Any]:
        begun = time.perf_counter()
        positions = {id(size): index for index, size in enumerate(_distinct(schedule.step_sizes))}

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                *outer, xs, ys, xq, yq = inputs
                outer = [tensor.detach().requires_grad_() for tensor in outer]
                own = outer[len(names) :]
                sizes: StepSizes = [
                    {
                        name: own[positions[id(size)]] if isinstance(size, Tensor) else size
                        for name, size in step.items()
                    }
                    for step in schedule.step_sizes
                ]
                part = differentiate(
                    adaptation, dict(zip(names, outer, strict=False)), own, Episode(Batch(xs, ys), Batch(xq, yq)),
                    schedule._replace(step_sizes=sizes), queries,
                )  # fmt: skip
            return part.loss.detach(), part.logits, *part.grads

        # the composed normalisation is fused by the compiler, and asks nothing of the data
        with own_kernels(*["conv"] if is_own("conv") else []):
            graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
        on_gpu = values[0].is_cuda
        compiled = torch.compile(graph, dynamic=False, mode="reduce-overhead" if on_gpu else "default")
        with torch.random.fork_rng([values[0].device] if on_gpu else []):
            compiled(*values)  # compiles; the first call's draws are not the run's
        tasks = len(values[-1])
        self._say(
            f"compile: {tasks} tasks of {list(values[-4].shape[1:])} in {len(graph.graph.nodes)} operators, compiled in "
            f"{time.perf_counter() - begun:.0f} s"
        )
        if not on_gpu:
            return compiled

        def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
            torch.compiler.cudagraph_mark_step_begin()
            return tuple(
                out.clone() for out in compiled(*inputs)
            )  # the graph writes its outputs to the same place again

        return replay


def _distinct(step_sizes: StepSizes) -> list[Tensor]:
    return list({id(size): size for step in step_sizes for size in step.values() if isinstance(size, Tensor)}.values())


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
