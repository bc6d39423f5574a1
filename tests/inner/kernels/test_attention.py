"""Attention inside an inner loop has a second derivative, whatever kernels torch would choose."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML
from metalearn.inner.ambient import Change
from metalearn.inner.kernels.routing import KERNEL_ANSWERS, Routing
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import noise_episode

SHAPE = (1, 8, 8)


class Attentive(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(self.embed(x[:, 0]))
        z = z + F.scaled_dot_product_attention(z, z, z, is_causal=True)
        seen = torch.arange(z.shape[1]) < 5
        z = z + F.scaled_dot_product_attention(z, z, z, attn_mask=seen)
        return self.head(z.mean(1))


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_attention_is_differentiated_twice(execution: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net, episode = Attentive(0.0).double(), noise_episode(shape=SHAPE)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = plain_loop(copy.deepcopy(net), episode, 2, 0.1, False)
    module = MAML(net, inner_steps=2, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]
    with caplog.at_level("INFO"):
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9
        module.meta_gradient(episode)
    assert caplog.text.count("torch's math kernel") == caplog.text.count("rank_zero:") // 2 == 1


MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]).bool()
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "scale": {"scale": -0.3},
    "scale 0": {"scale": 0.0},
    "mask": {"attn_mask": MASK},
    "numbers": {"attn_mask": torch.where(MASK, 0.5, -torch.inf).double()},
    "mask of each": {"attn_mask": torch.tensor([1, 1, 0, 1, 0]).bool().expand(2, 1, 1, 5)},
}


def both_derivatives(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> list[Tensor]:
    tensors = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    y = F.scaled_dot_product_attention(*tensors, **options)
    first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
    second = torch.autograd.grad(torch.stack([grad.square().sum() for grad in first]).sum(), tensors)
    return [y, *first, *second]


@pytest.mark.parametrize("width", [6, 16])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_torchs(name: str, width: int) -> None:
    """One row of the mask attends to nothing: its output is 0, and its derivatives are numbers."""
    query, key = torch.randn(2, 4, 4, width, dtype=torch.float64), torch.randn(2, 4, 5, width, dtype=torch.float64)
    value = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = both_derivatives(query, key, value, OPTIONS[name])
    with Change(twice_differentiable=True), Routing(KERNEL_ANSWERS):
        found = both_derivatives(query, key, value, OPTIONS[name])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_attention_of_fewer_keys_than_queries() -> None:
    query, shared = torch.randn(2, 4, 3, 8, dtype=torch.float64), torch.randn(2, 2, 3, 8, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = both_derivatives(query, shared, shared, {"enable_gqa": True})
    with Change(twice_differentiable=True), Routing(KERNEL_ANSWERS):
        found = both_derivatives(query, shared, shared, {"enable_gqa": True})
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_scores_of_float16_stay_in_its_range() -> None:
    """Before they are scaled they are 131,072."""
    x = torch.full((1, 2, 32), 64.0).half()
    with Change(twice_differentiable=True), Routing(KERNEL_ANSWERS):
        assert F.scaled_dot_product_attention(x, x, x).tolist() == x.tolist()


def test_a_mask_beside_causal_attention_is_refused_as_by_torch() -> None:
    x = torch.randn(2, 5, 5)
    with Change(twice_differentiable=True), Routing(KERNEL_ANSWERS), pytest.raises(RuntimeError, match="is_causal"):
        F.scaled_dot_product_attention(x, x, x, attn_mask=MASK[0], is_causal=True)


def test_dropout_is_no_reason_against_several_tasks_at_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = MAML(Attentive(0.3), inner_steps=1, inner_lr=0.1)
    with caplog.at_level("INFO"):
        module.meta_gradient(noise_episode(shape=SHAPE, dtype=torch.float32))
    assert "vectorized execution over tasks" in caplog.text
