"""Heads whose rows start anew in each task: all alike (UNICORN-MAML), or at the classes' prototypes (ProtoMAML)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from metalearn.errors import ConfigError
from metalearn.inner.adapters.base import PREFIX, Adapter, AdapterPart, Task
from metalearn.inner.adapters.layers import find_own_name
from metalearn.inner.class_means import average_classes
from metalearn.inner.parts import find_head, get_head
from metalearn.inner.rules import Params

__all__ = ["PrototypeHead", "SharedHead"]


@dataclass(frozen=True)
class SharedHead(Adapter):
    """All rows of the head start at one learned row, and adapt apart (UNICORN-MAML, Ye and Chao 2022).

    So the order in which a task numbers its classes changes nothing. The adapted network takes any number of classes. The learned
    row starts as the mean of the head's rows, and the head's own tensors are out of use.

    Args:
        head: the name of the head, a ``torch.nn.Linear``; ``None`` for the submodule ``head``, or else the last linear layer.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, SharedHead
        >>> module = MAML(MLP(outputs=5, inputs=8), adapter=SharedHead(), inner_lr=0.1)
        >>> support = Batch(torch.randn(20, 8), torch.arange(20))
        >>> module.adapt(support, ways=20)(torch.randn(3, 8)).shape
        torch.Size([3, 20])
    """

    head: str | None = None

    def build(self, network: nn.Module) -> AdapterPart:
        return SharedRows(network, *_find_linear(network, self.head, "SharedHead"))


@dataclass(frozen=True)
class PrototypeHead(Adapter):
    """The head starts at ``w_k = 2 c_k, b_k = -|c_k|^2`` (ProtoMAML, Triantafillou et al. 2020).

    ``c_k`` is the mean feature of the support examples of class ``k``. Before any step the network then classifies as a
    prototypical network does, by squared distances. Gradients flow through this start to the body, as in the paper. The adapted
    network takes any number of classes. The head's own tensors are out of use.

    Args:
        head: the name of the head, a ``torch.nn.Linear`` with a bias; ``None`` for the submodule ``head``, or else the last
            linear layer.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, PrototypeHead
        >>> module = MAML(MLP(outputs=5, inputs=8), adapter=PrototypeHead(), inner_lr=0.01)
        >>> support = Batch(torch.randn(10, 8), torch.arange(5).repeat(2))
        >>> module.adapt(support).params["head.weight"].shape
        torch.Size([5, 40])
    """

    head: str | None = None

    def build(self, network: nn.Module) -> AdapterPart:
        name, layer = _find_linear(network, self.head, "PrototypeHead")
        if layer.bias is None:
            raise ConfigError(
                f"adapter is PrototypeHead, but the head {name!r} has no bias, where minus the squared norm of a prototype "
                "belongs; give it one, or use SharedHead"
            )
        return Prototypes(network, name, layer)


class SharedRows(AdapterPart):
    """The row that all classes start from: ``row`` ``[1, F]``, and ``shift`` ``[1]`` where the head has a bias."""

    widens = True

    def __init__(self, network: nn.Module, name: str, layer: nn.Linear) -> None:
        super().__init__()
        self._ways = layer.out_features
        self._own = {find_own_name(network, layer.weight): "row"}
        self.row = nn.Parameter(layer.weight.detach().mean(0, keepdim=True))
        if layer.bias is not None:
            self._own[find_own_name(network, layer.bias)] = "shift"
            self.shift = nn.Parameter(layer.bias.detach().mean(0, keepdim=True))
        self.touches = tuple(self._own)

    def starts(self) -> Params:
        return {name: self.get_parameter(own) for name, own in self._own.items()}

    def begin(self, task: Task) -> Params:
        rows = max(task.ways or 0, self._ways)
        values = {name: task.read(PREFIX + own) for name, own in self._own.items()}
        return {name: value.expand(rows, *value.shape[1:]) for name, value in values.items()}


class Prototypes(AdapterPart):
    """No tensors of its own: the head's start is a function of the support set."""

    widens = True

    def __init__(self, network: nn.Module, name: str, layer: nn.Linear) -> None:
        super().__init__()
        self._head, self._ways = name, layer.out_features
        self._weight, self._bias = find_own_name(network, layer.weight), find_own_name(network, layer.bias)
        self.register_buffer("row", layer.weight.new_zeros(1, layer.in_features), persistent=False)
        self.register_buffer("shift", layer.weight.new_zeros(1), persistent=False)
        self.touches = (self._weight, self._bias)

    def starts(self) -> Params:
        return {self._weight: self.get_buffer("row"), self._bias: self.get_buffer("shift")}

    def begin(self, task: Task) -> Params:
        if task.targets.is_floating_point() or task.targets.ndim != 1:
            raise ConfigError(
                "adapter is PrototypeHead, but the targets are not one class label for each example; leave the adapter out"
            )
        features = task.features(self._head)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(task.read(self._weight).dtype)
            means, _ = average_classes(features, task.targets, max(task.ways or 0, self._ways))
            return {self._weight: 2 * means, self._bias: -means.square().sum(-1)}


def _find_linear(network: nn.Module, head: str | None, adapter: str) -> tuple[str, nn.Linear]:
    name = find_head(network, f"adapter is {adapter}") if head is None else head
    layer = get_head(network, name)
    if not isinstance(layer, nn.Linear) or "weight" not in layer._parameters:
        raise ConfigError(
            f"adapter is {adapter}, but the head {name!r} is a {type(layer).__name__}, and only a torch.nn.Linear has a row for "
            f"each class; name one with {adapter}(head=NAME)"
        )
    return name, layer
