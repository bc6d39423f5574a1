"""What every adapter is: a description that a user writes, and the part with tensors that it builds for a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from metalearn.inner.described import describe_object
from metalearn.inner.rules import Params

__all__ = ["PREFIX", "Adapter", "AdapterPart", "Read", "Task"]

PREFIX = "adapter:"
"""Begins the names of an adapter's tensors among the network's; no tensor of a network has a name that begins so."""

Read = Callable[[str], Tensor]
"""``read(name)``: a tensor of the network, or with :data:`PREFIX` one of the adapter, as it is in this forward pass."""


@dataclass(frozen=True)
class Task:
    """What the start of a task's tensors may be computed from.

    Attributes:
        read: gives tensors by name.
        features: gives what a layer, by its name, is called with for the support set, ``[n, F]``.
        targets: of the support set.
        ways: the classes of the task; ``None`` for as many as the network has outputs.
    """

    read: Read
    features: Callable[[str], Tensor]
    targets: Tensor
    ways: int | None


class AdapterPart(nn.Module):
    """The tensors that an adapter adds to a network. Its functions are pure: they write nothing.

    Example:
        >>> import torch
        >>> from metalearn.inner import AdapterPart, LoRA
        >>> part = LoRA(rank=2).build(torch.nn.Sequential(torch.nn.Linear(8, 5)))
        >>> isinstance(part, AdapterPart), part.moving()
        (True, ['adapter:0:a', 'adapter:0:b'])

    Attributes:
        touches: the tensors of the network that it stands for or changes.
        widens: whether it makes a head for any number of classes.
        trains_network: whether the outer loop trains the network too, or what adapts alone.
    """

    touches: tuple[str, ...] = ()
    widens: bool = False
    trains_network: bool = True

    def moving(self) -> list[str]:
        """The names of the tensors that the inner loop moves, the network's or its own with :data:`PREFIX`."""
        return [*self.starts()]

    def starts(self) -> Params:
        """Of the moving tensors that start anew in each task, one of their shape, or of one row."""
        return {}

    def count_added(self) -> int:
        """How many numbers the inner loop moves that the network has not."""
        own = {PREFIX + name: value for name, value in self.named_parameters()} | self.starts()
        return sum(own[name].numel() for name in self.moving() if name.startswith(PREFIX))

    def begin(self, task: Task) -> Params:
        """Where these start in a task, with its graph."""
        return {}

    def merge(self, read: Read) -> Params:
        """The tensors of the network that a forward pass needs in the place of its own."""
        return {}


class Adapter(ABC):
    """Says what the inner loop moves in the place of a network's own tensors, or where these start. A frozen dataclass.

    Attributes:
        alone: whether nothing else moves unless ``adapts`` names it.

    Example:
        >>> from metalearn.inner import Adapter, LoRA
        >>> isinstance(LoRA(rank=2), Adapter)
        True
    """

    alone: ClassVar[bool] = False

    def describe(self) -> dict[str, Any]:
        """The adapter in plain types, as checkpoints keep it."""
        return describe_object(self)

    @abstractmethod
    def build(self, network: nn.Module) -> AdapterPart:
        """The tensors for this network, which stays as it is.

        Raises:
            ConfigError: the network has no layer that it could take.
        """
