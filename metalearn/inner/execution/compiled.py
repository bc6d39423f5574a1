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
from metalearn.inner.adaptation import Adaptation, Settings
from metalearn.inner.ambient import is_own, own_kernels
from metalearn.inner.execution.differentiate import Part, differentiate
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.rules import Params

__all__ = ["CompiledPart"]


class CompiledPart:
    """Stands in for :func:`metalearn.inner.execution.differentiate.differentiate`; the same arguments, the same result.

    Where the step cannot be traced, or the machine has no compiler, the ordinary one is used from then on.

    Args:
        say: takes the line that says how long a compilation took, or why there is none.

    Attributes:
        works: whether nothing has failed to compile.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self.works = True

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
        if not self.works:
            return differentiate(adaptation, params, extra, episode, schedule, queries)
        learned = _distinct(schedule.settings)
        inputs = [*params.values(), *learned, *episode.support, *episode.query]
        key = self._key(adaptation, inputs, schedule, queries)
        with torch.no_grad():
            values = [tensor.detach() for tensor in inputs]
            if key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(adaptation, list(params), schedule, queries, values)
                except (
                    Exception
                ) as error:  # whatever tracing or the compiler raise: the ordinary way does not need them
                    self.works = False
                    self._say(f"compile: the step is not compiled, because {_reason(error)}; it runs uncompiled")
                    with torch.enable_grad():
                        return differentiate(adaptation, params, extra, episode, schedule, queries)
            loss, logits, *grads = self._compiled[key](*values)
        of_extra = _chain(learned, grads[len(params) :], extra)
        return Part(loss, logits, (*grads[: len(params)], *of_extra))

    def _key(
        self, adaptation: Adaptation, inputs: Sequence[Tensor], schedule: Schedule, queries: int | None
    ) -> tuple[Any, ...]:
        """What a graph depends on."""
        device = inputs[0].device.type
        shapes = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
        modes = tuple(layer.training for layer in adaptation.learner.network.modules())
        precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        numbers = tuple(  # such as step sizes that are not learned, which are constants of the graph
            tuple((name, value) for name, value in step.items() if not isinstance(value, Tensor))
            for step in schedule.settings
        )
        return shapes, modes, precision, adaptation.stacked, schedule.steps, schedule.order, queries, numbers

    def _compile(
        self,
        adaptation: Adaptation,
        names: list[str],
        schedule: Schedule,
        queries: int | None,
        values: list[Tensor],
    ) -> Callable[..., Any]:
        begun = time.perf_counter()
        run = _flatten(adaptation, names, schedule, queries)
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
        return _copy_outputs(compiled) if on_gpu else compiled


def _flatten(
    adaptation: Adaptation, names: list[str], schedule: Schedule, queries: int | None
) -> Callable[..., tuple[Tensor, ...]]:
    """:func:`differentiate` from tensors (parameters, settings, both sets) to tensors (loss, logits, gradients)."""
    positions = {id(value): index for index, value in enumerate(_distinct(schedule.settings))}

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            *outer, xs, ys, xq, yq = inputs
            outer = [tensor.detach().requires_grad_() for tensor in outer]
            params, own = dict(zip(names, outer, strict=False)), outer[len(names) :]
            settings: Settings = [
                {
                    name: own[positions[id(value)]] if isinstance(value, Tensor) else value
                    for name, value in step.items()
                }
                for step in schedule.settings
            ]
            episode = Episode(Batch(xs, ys), Batch(xq, yq))
            part = differentiate(adaptation, params, own, episode, schedule._replace(settings=settings), queries)
        return part.loss.detach(), part.logits, *part.grads

    return run


def _copy_outputs(compiled: Callable[..., Sequence[Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """The same, whose outputs outlive the next call: a graph of CUDA writes them to the same place again."""

    def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()
        return tuple(output.clone() for output in compiled(*inputs))

    return replay


def _chain(learned: list[Tensor], grads: Sequence[Tensor], extra: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient for what the settings were made from, from that for the settings."""
    if not extra:
        return ()
    reaching = [(value, grad) for value, grad in zip(learned, grads, strict=True) if value.requires_grad]
    of_extra = torch.autograd.grad(
        [value for value, _ in reaching], list(extra), [grad for _, grad in reaching],
        retain_graph=True, materialize_grads=True,
    )  # fmt: skip
    return tuple(grad.detach() for grad in of_extra)


def _distinct(settings: Settings) -> list[Tensor]:
    """The tensors among the settings, each of them once."""
    tensors = (value for step in settings for value in step.values() if isinstance(value, Tensor))
    return list({id(value): value for value in tensors}.values())


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
