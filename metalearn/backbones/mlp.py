"""A plain multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metalearn.checks import check_numbers, check_whole

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last one is called ``head``.

    The defaults are the sinusoid regressor of Finn et al. 2017: two hidden layers of 40 units.

    Args:
        outputs: how many outputs there are: ``N`` classes, or ``d`` regression targets.
        inputs: how many features an input has, after flattening.
        hidden: the width of each hidden layer.

    Shape:
        ``[n, ...] -> [n, outputs]``.

    Example:
        >>> import torch
        >>> from metalearn import MLP
        >>> MLP(outputs=5, inputs=8, hidden=[32])(torch.randn(10, 8)).shape
        torch.Size([10, 5])
    """

    def __init__(self, outputs: int = 1, inputs: int = 1, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        check_whole("outputs", outputs, 1, 100_000)
        check_whole("inputs", inputs, 1, 10_000_000)
        check_numbers("hidden", hidden, "use [40, 40]")
        for layer, width in enumerate(hidden):
            check_whole(f"hidden[{layer}]", width, 1, 100_000)
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in zip([inputs, *hidden], hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear([inputs, *hidden][-1], outputs)
        self.init_args = {"outputs": outputs, "inputs": inputs, "hidden": list(hidden)}

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result
