"""The gradient of a part of a meta-batch as a function from tensors to tensors, and all that it depends on beside them.

What compiles the step, or records it, needs both: the function to trace or to record, and a key that tells when another one is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation, Settings
from metalearn.inner.ambient import current
from metalearn.inner.execution.differentiate import Part, differentiate
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.losses import ModuleLoss
from metalearn.inner.rules import Params

__all__ = ["FlatPart", "describe_state", "explain", "find_obstacle", "list_places"]


class FlatPart:
    """One call of :func:`~metalearn.inner.execution.differentiate.differentiate`, its arguments taken apart.

    Args:
        adaptation: the inner loop.
        params: the outer tensors by name.
        extra: further outer tensors.
        episode: these tasks.
        schedule: see :class:`Schedule`.
        queries: the tasks whose query sets are differentiated at once.

    Attributes:
        key: what the function depends on beside its inputs' values: the network, then shapes, types, modes, names, numbers.
        values: the inputs, without a graph: parameters, settings, both sets.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        params: Params,
        extra: Sequence[Tensor],
        episode: Episode,
        schedule: Schedule,
        queries: int | None,
    ) -> None:
        self._adaptation, self._params, self._extra = adaptation, params, extra
        self._schedule, self._queries = schedule, queries
        self._learned = _list_distinct(schedule.settings)
        inputs = [*params.values(), *self._learned, *episode.support, *episode.query]
        self.values = [tensor.detach() for tensor in inputs]
        self.key = self._make_key()

    def make_function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The function of :attr:`values`; it gives the loss, the logits and the gradient by each input but the sets."""
        names = list(self._params)
        adaptation, schedule, queries = self._adaptation, self._schedule, self._queries
        positions = self._positions()

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

    def join(self, outputs: Sequence[Tensor]) -> Part:
        """What the function has given, as :func:`differentiate` gives it: by what the settings were made from."""
        loss, logits, *grads = outputs
        count = len(self._params)
        return Part(loss, logits, (*grads[:count], *self._chain(grads[count:])))

    def _positions(self) -> dict[int, int]:
        return {id(value): index for index, value in enumerate(self._learned)}

    def _make_key(self) -> tuple[Any, ...]:
        adaptation, schedule, positions = self._adaptation, self._schedule, self._positions()
        settings = tuple(  # step sizes that are not learned are constants of what is traced or recorded
            tuple((name, positions[id(v)] if isinstance(v, Tensor) else (v,)) for name, v in step.items())
            for step in schedule.settings
        )
        return (
            adaptation.learner.network,  # another copy is made when an attribute of a layer has changed
            tuple((tuple(x.shape), x.dtype, x.device) for x in self.values),
            tuple(self._params),
            *describe_state(adaptation, self.values[0].device.type),
            adaptation.method.chunk,
            (schedule.steps, schedule.order, self._queries, settings),
            None if schedule.weights is None else tuple(schedule.weights),
        )

    def _chain(self, grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradient for what the settings were made from, from that for the settings."""
        if not self._extra:
            return ()
        reaching = [(value, grad) for value, grad in zip(self._learned, grads, strict=True) if value.requires_grad]
        of_extra = torch.autograd.grad(
            [value for value, _ in reaching], list(self._extra), [grad for _, grad in reaching],
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        return tuple(grad.detach() for grad in of_extra)


def describe_state(adaptation: Adaptation, device: str) -> tuple[Any, ...]:
    """What else a step depends on that is no tensor: modes, names, operators, autocast."""
    learner, loss = adaptation.learner, adaptation.loss
    layers = [*learner.network.modules(), *(loss.module.modules() if isinstance(loss, ModuleLoss) else ())]
    return (
        tuple(learner.moving()),
        type(learner),
        learner.norm,
        tuple(layer.training for layer in layers),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        current().operators,
        (adaptation.stacked, adaptation.ways, adaptation.memory, type(adaptation.method)),
    )


Place = tuple[int, tuple[int, ...], torch.dtype]
"""Where a tensor lies, and how it is read."""


def list_places(adaptation: Adaptation, names: Collection[str]) -> tuple[Place, ...]:
    """Where the tensors lie that a step reads in their place: all that are no inputs of it, whose ``names`` these are."""
    return tuple((value.data_ptr(), tuple(value.shape), value.dtype) for value in _list_others(adaptation, names))


def _list_others(adaptation: Adaptation, names: Collection[str]) -> Iterator[Tensor]:
    learner = adaptation.learner
    yield from (value for name, value in learner.tensors.named() if name not in names)
    yield from learner.backbone.buffers()
    if learner.adapter is not None:
        yield from learner.adapter.buffers()
    if isinstance(adaptation.loss, ModuleLoss):
        yield from (value for value in adaptation.loss.module.parameters() if not value.requires_grad)
        yield from adaptation.loss.module.buffers()


def find_obstacle(adaptation: Adaptation) -> str | None:
    """Why a step of this network cannot be taken for a list of operators, in a few words; ``None`` for no reason."""
    learner = adaptation.learner
    if learner.network is learner.backbone:
        return "the network itself is called, whose Python may do more than compute"
    return "norm 'per_step' keeps statistics of every pass" if learner.norm == "per_step" else None


def explain(error: BaseException) -> str:
    """The first line of an error, of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _list_distinct(settings: Settings) -> list[Tensor]:
    """The tensors among the settings, each of them once."""
    tensors = (value for step in settings for value in step.values() if isinstance(value, Tensor))
    return list({id(value): value for value in tensors}.values())
