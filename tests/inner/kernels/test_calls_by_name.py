"""Networks that call torch's functions by the names of their arguments train as those that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML
from tests.networks import noise_episode

Call = Callable[[nn.ParameterDict, Tensor], Tensor]
BY_NAME: dict[str, tuple[Call, Call]] = {
    "linear": (
        lambda p, x: F.linear(x.mean((2, 3)), p["matrix"], p["bias"]),
        lambda p, x: F.linear(input=x.mean((2, 3)), bias=p["bias"], weight=p["matrix"]),
    ),
    "conv2d": (
        lambda p, x: F.conv2d(x, p["filters"], p["bias"], 2, 1),
        lambda p, x: F.conv2d(input=x, weight=p["filters"], bias=p["bias"], stride=2, padding=1),
    ),
    "conv2d, same": (
        lambda p, x: F.conv2d(x, p["filters"], p["bias"], 1, "same"),
        lambda p, x: F.conv2d(input=x, weight=p["filters"], bias=p["bias"], padding="same"),
    ),
    "conv1d": (
        lambda p, x: F.conv1d(x.flatten(2), p["filters"].flatten(2), None, 4),
        lambda p, x: F.conv1d(input=x.flatten(2), weight=p["filters"].flatten(2), stride=4),
    ),
    "batch_norm": (
        lambda p, x: F.batch_norm(x, None, None, p["scale"], p["shift"], True),
        lambda p, x: F.batch_norm(
            input=x, running_mean=None, running_var=None, weight=p["scale"], bias=p["shift"], training=True
        ),
    ),
    "layer_norm": (
        lambda p, x: F.layer_norm(x.movedim(1, -1), (2,), p["scale"], p["shift"]),
        lambda p, x: F.layer_norm(input=x.movedim(1, -1), normalized_shape=(2,), weight=p["scale"], bias=p["shift"]),
    ),
    "group_norm": (
        lambda p, x: F.group_norm(x, 2, p["scale"], p["shift"]),
        lambda p, x: F.group_norm(input=x, num_groups=2, weight=p["scale"], bias=p["shift"]),
    ),
    "adaptive_avg_pool2d": (
        lambda p, x: F.adaptive_avg_pool2d(F.conv2d(x, p["filters"]), 1),
        lambda p, x: F.adaptive_avg_pool2d(output_size=1, input=F.conv2d(x, p["filters"])),
    ),
    "max_pool2d": (
        lambda p, x: F.max_pool2d(F.conv2d(x, p["filters"]), 2),
        lambda p, x: F.max_pool2d(kernel_size=2, input=F.conv2d(x, p["filters"])),
    ),
    "attention": (
        lambda p, x: F.scaled_dot_product_attention(*[x.flatten(2).mT @ p["square"]] * 3),
        lambda p, x: F.scaled_dot_product_attention(
            value=x.flatten(2).mT @ p["square"], key=x.flatten(2).mT @ p["square"], query=x.flatten(2).mT @ p["square"]
        ),
    ),
    "silu": (
        lambda p, x: F.silu(x * p["scale"].view(-1, 1, 1)),
        lambda p, x: F.silu(input=x * p["scale"].view(-1, 1, 1)),
    ),
}


class Caller(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        torch.manual_seed(0)
        shapes = {
            "matrix": (6, 2),
            "bias": (6,),
            "filters": (6, 2, 3, 3),
            "scale": (2,),
            "shift": (2,),
            "square": (2, 2),
        }
        self.values = nn.ParameterDict({name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})
        y = call(self.values, torch.randn(2, 2, 8, 8))
        used = torch.autograd.grad(y.square().sum(), list(self.values.values()), allow_unused=True)
        for value, grad in zip(self.values.values(), used, strict=True):
            value.requires_grad_(grad is not None)
        self.head = nn.Linear(y[0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.call(self.values, x).flatten(1))
        return y


@pytest.mark.parametrize("execution", ["auto", "sequential"])
@pytest.mark.parametrize("name", BY_NAME)
def test_a_call_by_name_is_the_same_call(name: str, execution: str) -> None:
    episode = noise_episode(tasks=2, shape=(2, 8, 8), dtype=torch.float32)
    gradients = []
    for call in BY_NAME[name]:
        module = MAML(Caller(call), 2, 0.1, execution=execution)
        module.training_step(episode, 0).backward()
        gradients.append([parameter.grad for parameter in module.backbone.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 2  # beside the head's, something that the call uses
    torch.testing.assert_close(*gradients)
