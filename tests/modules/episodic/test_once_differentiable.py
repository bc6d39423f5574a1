"""Operations whose second derivative autograd takes for 0 in silence, in networks, in losses and in bilevel problems."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import ANIL, IMAML, MAML, Batch, Episode, MetaModule, Reptile
from metalearn.bilevel import (
    AID,
    ITD,
    BilevelProblem,
    Estimator,
    Exact,
    GradientDescent,
    StocBiONeumann,
    hypergradient,
)
from metalearn.errors import BilevelError, ConfigError


class Exponential(torch.autograd.Function):
    """As a kernel with a backward of its own has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        value = x.exp()
        ctx.save_for_backward(value)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return cotangents[0] * ctx.saved_tensors[0]


class Network(nn.Module):
    def __init__(self, once: bool) -> None:
        super().__init__()
        self.body, self.head, self.once = nn.Linear(6, 8), nn.Linear(8, 5), once

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        logits: Tensor = self.head(Exponential.apply(z) if self.once else z.exp())
        return logits


def make_episode() -> Episode:
    x = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(10).remainder(5).expand(2, 10)
    return Episode(Batch(x, y), Batch(x + 0.1, y))


def find_gradient(kind: type[MetaModule], once: bool, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module: MetaModule = kind(Network(once), inner_steps=2, inner_lr=0.3, **options)  # type: ignore[arg-type]
    return module.meta_gradient(make_episode())


@pytest.mark.parametrize("options", [{}, {"memory": "remat"}, {"execution": "sequential"}], ids=str)
def test_a_network_that_cannot_be_differentiated_twice_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^Exponential is used .* once_differentiable, .*; use first_order=True"):
        find_gradient(MAML, True, **options)


def test_implicit_gradients_are_refused_too() -> None:
    with pytest.raises(ConfigError, match="Exponential is used"):
        find_gradient(IMAML, True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(MAML, {"first_order": True}), (ANIL, {}), (MAML, {"adapts": "head"}), (Reptile, {})],
    ids=["first-order MAML", "ANIL", "head alone", "Reptile"],
)
def test_where_it_is_differentiated_once_it_is_right(kind: type[MetaModule], options: dict[str, Any]) -> None:
    once, plain = (find_gradient(kind, once, **options) for once in (True, False))
    assert all(torch.allclose(once[name], value, rtol=1e-5, atol=1e-7) for name, value in plain.items())


def test_a_loss_that_cannot_be_differentiated_twice_is_refused() -> None:
    def poisson(outputs: Tensor, targets: Tensor) -> Tensor:
        return (Exponential.apply(outputs) - targets * outputs).mean()

    x = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0))
    episode = Episode(Batch(x, x[..., :1].exp()), Batch(x + 0.1, x[..., :1].exp()))
    module = MAML(nn.Linear(6, 1), inner_steps=2, inner_lr=0.1, loss=poisson, task="regression")
    with pytest.raises(ConfigError, match="Exponential is used between the adapted tensors and the loss"):
        module.meta_gradient(episode)


INNER = GradientDescent(step_size=0.2, steps=30)


@pytest.mark.parametrize(
    "estimator", [AID(inner=INNER), ITD(inner=INNER), StocBiONeumann(inner=INNER, eta=0.2, Q=5), Exact(inner=INNER)]
)
def test_an_inner_loss_that_cannot_be_differentiated_twice_is_refused(estimator: Estimator) -> None:
    def inner(x: Tensor, y: Tensor, _: object) -> Tensor:
        return (Exponential.apply(y) - x * y).sum() + y.square().sum() / 2

    problem = BilevelProblem(lambda x, y, _: (y - 1).square().sum(), inner, torch.zeros_like)
    with pytest.raises(BilevelError, match="inner_loss uses Exponential, whose backward is once_differentiable"):
        hypergradient(problem, torch.ones(3, dtype=torch.float64), estimator=estimator)


def test_what_depends_on_x_alone_is_differentiated_once() -> None:
    """``g = (y - exp(x))^2/2``, so that ``y* = exp(x)`` and ``dPhi/dx = 2 (y* - 1) exp(x)``."""

    def inner(x: Tensor, y: Tensor, _: object) -> Tensor:
        return (y - Exponential.apply(x)).square().sum() / 2

    problem = BilevelProblem(lambda x, y, _: (y - 1).square().sum(), inner, torch.zeros_like)
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    value = hypergradient(problem, x, estimator=AID(inner=GradientDescent(step_size=1.0, steps=3))).value
    assert torch.allclose(value, 2 * (x.exp() - 1) * x.exp())
