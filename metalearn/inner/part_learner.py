"""A part of the network adapts: the tensors that patterns name, and those of an adapter."""

from __future__ import annotations

from torch import nn

from metalearn.errors import ConfigError
from metalearn.inner.adapters.base import Adapter, AdapterPart
from metalearn.inner.head import HeadLearner
from metalearn.inner.learner import Learner
from metalearn.inner.moving_part import MovingPart
from metalearn.inner.norm.task_norm import TaskNorm
from metalearn.inner.parts import Part, Patterns
from metalearn.inner.rules import Params

__all__ = ["PartLearner", "make_learner"]


class PartLearner(Learner):
    """Some tensors of the network adapt, and those of an adapter.

    Args:
        backbone: the caller's network, as for :class:`Learner`.
        norm: the statistics policy, as for :class:`Learner`.
        part: says which tensors adapt.

    Raises:
        ConfigError: a pattern fits no tensor of the network.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner import TaskNorm
        >>> from metalearn.inner.part_learner import make_learner
        >>> network = MLP(outputs=5, inputs=8, hidden=[16])
        >>> list(make_learner(network, TaskNorm(network, "transductive"), "bias").able())
        ['body.1.bias', 'head.bias']
    """

    def __init__(self, backbone: nn.Module, norm: TaskNorm, part: MovingPart) -> None:
        super().__init__(backbone, norm, part.adapter)
        self._part = part
        self._names = part.names(backbone)

    def able(self) -> Params:
        self._names = self._part.names(self.backbone)
        return super().able()

    def adapts(self, name: str) -> bool:
        return name in self._names

    @property
    def note(self) -> str | None:
        return self._part.note(self.backbone)


def make_learner(
    backbone: nn.Module, norm: TaskNorm, adapts: Patterns | None = None, adapter: Adapter | None = None
) -> Learner:
    """The learner of some patterns and an adapter.

    Where all that adapts lies in one submodule, that is tried as a head is: what comes before it may be computed once.

    Args:
        backbone: the caller's network.
        norm: the statistics policy.
        adapts: patterns; ``None`` for all, or for nothing beside an adapter that moves alone.
        adapter: as it was described.

    Raises:
        ConfigError: a pattern fits no tensor of the network, or the adapter no layer.
    """
    if adapter is None and adapts in (None, "all", ["all"]):
        return Learner(backbone, norm)
    patterns = adapts if adapts is not None else None if adapter is not None and adapter.alone else "all"
    part = None if patterns is None else Part.of(patterns)
    moving = MovingPart(part, None if adapter is None else _build(adapter, backbone))
    moving.names(backbone)
    scope = moving.scope(backbone)
    if scope:
        return HeadLearner(backbone, norm, scope, part=moving, adapter=moving.adapter)
    return PartLearner(backbone, norm, moving)


def _build(adapter: Adapter, backbone: nn.Module) -> AdapterPart:
    part = adapter.build(backbone)
    if not isinstance(part, AdapterPart):
        name = type(adapter).__name__
        raise ConfigError(
            f"adapter is {name}, whose build gives a {type(part).__name__}, but it must give an AdapterPart; return one from "
            f"{name}.build"
        )
    return part
