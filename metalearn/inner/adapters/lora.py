"""Low-rank changes of a network's weights (LoRA, Hu et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from metalearn.checks import check_choice, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.inner.adapters.base import PREFIX, Adapter, AdapterPart, Read
from metalearn.inner.adapters.layers import escape, find_layers, find_own_name
from metalearn.inner.parts import check_patterns
from metalearn.inner.rules import Params

__all__ = ["LoRA"]

Trains = Literal["all", "factors"]


@dataclass(frozen=True)
class LoRA(Adapter):
    """The inner loop moves a low-rank change of some weights: ``W + alpha / rank * B A`` (Hu et al. 2022).

    ``A`` is ``[rank, inputs]`` and ``B`` is ``[outputs, rank]``. A convolution's weight counts as a matrix
    ``[out_channels, in_channels * kernel]``. Both factors have a learned start: ``A`` is random and ``B`` is 0 at first. Nothing
    else moves in the inner loop, unless ``adapts`` names it.

    Args:
        rank: of each change, at most the smaller side of each weight.
        targets: names or patterns of the layers, as in ``adapts``; ``"all"`` for every linear and convolutional one.
        alpha: ``alpha / rank`` multiplies the change; ``None`` for ``alpha = rank``.
        trains: what the outer loop trains: the factors and the network (``"all"``), or ``"factors"`` and what
            ``adapts`` names alone. The network then keeps its weights, and stays as trainable as it is.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> from metalearn import MAML, MLP, LoRA
        >>> module = MAML(MLP(outputs=5, inputs=8), adapter=LoRA(rank=2, targets="body"), inner_lr=0.1)
        >>> [name for name, _ in module.adapter.named_parameters()]
        ['body/1:a', 'body/1:b', 'body/3:a', 'body/3:b']
    """

    alone: ClassVar[bool] = True

    rank: int
    targets: str | list[str] = "all"
    alpha: float | None = None
    trains: Trains = "all"

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1, remedy="use rank=4")
        check_patterns("targets", self.targets)
        if self.alpha is not None:
            check_number("alpha", self.alpha, "use alpha=1.0", above=0)
        check_choice("trains", self.trains, get_args(Trains))

    def build(self, network: nn.Module) -> AdapterPart:
        layers = find_layers(network, self.targets, "targets", find_fault)
        for name, layer in layers.items():
            outputs, inputs = _sides(layer)
            if self.rank > min(outputs, inputs):
                raise ConfigError(
                    f"rank is {self.rank}, but the weight of layer {name!r} is {outputs} x {inputs}; use at most "
                    f"{min(outputs, inputs)}, or leave the layer out with targets=['all', '!{name}']"
                )
        part = LowRank(network, layers, self.rank, (self.alpha or self.rank) / self.rank)
        part.trains_network = self.trains == "all"
        return part


class LowRank(AdapterPart):
    """The factors of each weight, ``<layer>:a`` and ``<layer>:b`` with / for the dots of the layer's name."""

    def __init__(self, network: nn.Module, layers: dict[str, nn.Module], rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self._factors: dict[str, str] = {}
        for name, layer in layers.items():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            outputs, inputs = _sides(layer)
            a = torch.empty(rank, inputs, dtype=weight.dtype, device=weight.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            key = escape(name)
            self.register_parameter(f"{key}:a", nn.Parameter(a))
            self.register_parameter(f"{key}:b", nn.Parameter(weight.new_zeros(outputs, rank)))
            self._factors[find_own_name(network, weight)] = PREFIX + key
        self.touches = tuple(self._factors)

    def moving(self) -> list[str]:
        return [PREFIX + name for name, _ in self.named_parameters()]

    def merge(self, read: Read) -> Params:
        merged = {}
        for name, factors in self._factors.items():
            weight = read(name)
            change = read(f"{factors}:b") @ read(f"{factors}:a")
            merged[name] = weight + self.scale * change.view(weight.shape)
        return merged


def find_fault(layer: nn.Module) -> str | None:
    """Why a layer has no weight that a low-rank matrix could be added to; ``None`` if it has."""
    if isinstance(layer, _ConvTransposeNd):
        return "is a transposed convolution, whose weight is no matrix from inputs to outputs"
    if not isinstance(layer, (nn.Linear, _ConvNd)):
        return f"is a {type(layer).__name__}, and only those of linear layers and convolutions are matrices"
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        return f"is a convolution of {layer.groups} groups, whose weight is a matrix for each"
    if "weight" not in layer._parameters:
        return "has a weight that is computed from other tensors (a parametrization)"
    return None


def _sides(layer: nn.Module) -> tuple[int, int]:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return len(weight), weight[0].numel()
