"""What the probe of the ways of running the inner loop must find."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import MAML
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import noise_episode


class Square(torch.autograd.Function):
    """``x^2``, which loses its second derivative, and nothing else, where tasks are stacked."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        here = x.detach()
        return here * here + 2 * here * (x - here), in_dims[0]


class Squaring(nn.Module):
    """A small share of the output comes from the squared weight."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.plain = share, nn.Linear(3, 3)
        self.squared = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) + self.share * Square.apply(self.squared)


@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4])
def test_a_second_derivative_that_is_lost_in_the_stack_is_found(share: float) -> None:
    """Whatever its tensor's share of the gradient; the outputs are the same."""
    torch.manual_seed(0)
    net, episode = Squaring(share).double(), noise_episode(shape=(3,))
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.3, first_order=False)
    module = MAML(net, inner_steps=1, inner_lr=0.3, execution="vectorized")
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    assert module.choice is not None
    assert module.choice.name == "sequential"
    assert "meta-gradient of squared differs" in module.choice.reasons[0]


def test_a_bias_that_normalisation_takes_away_is_no_difference() -> None:
    """Its gradient is rounding noise, which every way has another one of."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*body, nn.Linear(256, 3)).double()
    module = MAML(net, inner_steps=2, inner_lr=0.3, execution="vectorized")
    module.meta_gradient(noise_episode())
    assert module.choice is not None
    assert module.choice.name == "vectorized"
    assert module.choice.own_operators


def test_a_network_whose_meta_gradient_vanishes_is_compared() -> None:
    """All weights 0: nothing to divide by."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for value in net.parameters():
        value.data.zero_()
    module = MAML(net, inner_steps=1, loss=lambda outputs, _: outputs.square().mean())
    grads = module.meta_gradient(noise_episode(shape=(3,)))
    assert all(float(grad.abs().max()) == 0.0 for grad in grads.values())
