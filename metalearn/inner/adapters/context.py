"""Context parameters, which are all that the inner loop moves (CAVIA, Zintgraf et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.checks import check_whole
from metalearn.inner.adapters.base import PREFIX, Adapter, AdapterPart, Read, Task
from metalearn.inner.adapters.layers import escape, find_layers, find_own_name
from metalearn.inner.parts import check_patterns
from metalearn.inner.rules import Params

__all__ = ["Context"]

CONTEXT = PREFIX + "context"


@dataclass(frozen=True)
class Context(Adapter):
    """The inner loop moves a few context parameters alone, which start at 0 in each task (CAVIA, Zintgraf et al. 2019).

    A layer with bias ``b`` has ``b + V c`` in its place, with the context ``c`` ``[size]`` and a learned ``V`` ``[outputs,
    size]``. For a linear layer that is exactly a context joined to its input. For a convolution or a normalisation it is a shift
    of each channel; CAVIA's FiLM layers learn a scale of each channel too.

    Args:
        size: how many context parameters there are.
        layers: names or patterns of the layers that take them, as in ``adapts``. Each needs a bias.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, Context
        >>> module = MAML(MLP(), adapter=Context(size=4, layers="body.1"), inner_lr=0.1, loss="mse")
        >>> adapted = module.adapt(Batch(torch.randn(10, 1), torch.randn(10, 1)))
        >>> adapted.params["adapter:context"].shape
        torch.Size([4])
    """

    alone: ClassVar[bool] = True

    size: int
    layers: str | list[str]

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1, most=1_000_000, remedy="use size=5")
        check_patterns("layers", self.layers)

    def build(self, network: nn.Module) -> AdapterPart:
        swallowed = _find_swallowed(network)

        def find_fault(layer: nn.Module) -> str | None:
            bias = layer._parameters.get("bias")
            if bias is None or bias.ndim != 1:
                return "has no bias for a context to shift"
            if id(layer) in swallowed:
                return f"is followed by the batch normalisation {swallowed[id(layer)]!r}, which takes every shift out"
            return None

        return ContextPart(network, find_layers(network, self.layers, "layers", find_fault), self.size)


class ContextPart(AdapterPart):
    """The matrix ``V`` of each layer, ``<layer>:context``."""

    zeros: Tensor

    def __init__(self, network: nn.Module, layers: dict[str, nn.Module], size: int) -> None:
        super().__init__()
        self._matrices: dict[str, str] = {}
        for name, layer in layers.items():
            bias: Tensor = layer.bias  # type: ignore[assignment]
            weight = layer._parameters.get("weight")
            inputs = weight[0].numel() if weight is not None and weight.ndim > 1 else 0
            bound = (inputs + size) ** -0.5
            matrix = torch.empty(len(bias), size, dtype=bias.dtype, device=bias.device).uniform_(-bound, bound)
            key = f"{escape(name)}:context"
            self.register_parameter(key, nn.Parameter(matrix))
            self._matrices[find_own_name(network, bias)] = PREFIX + key
            self.register_buffer("zeros", bias.new_zeros(size), persistent=False)
        self.touches = tuple(self._matrices)

    def starts(self) -> Params:
        return {CONTEXT: self.zeros}

    def begin(self, task: Task) -> Params:
        first = task.read(next(iter(self._matrices.values())))
        return {CONTEXT: first.new_zeros(first.shape[1])}

    def merge(self, read: Read) -> Params:
        context = read(CONTEXT)
        return {name: read(name) + read(matrix) @ context for name, matrix in self._matrices.items()}


def _find_swallowed(network: nn.Module) -> dict[int, str]:
    """Of a layer whose outputs a batch normalisation takes at once, which is seen in a ``Sequential``, the name of that."""
    blocks = [(path, block) for path, block in network.named_modules() if isinstance(block, nn.Sequential)]
    return {
        id(layer): f"{path}.{name}".lstrip(".")
        for path, block in blocks
        for (_, layer), (name, norm) in pairwise(block.named_children())
        if isinstance(norm, _BatchNorm) and not isinstance(layer, _BatchNorm)
    }
