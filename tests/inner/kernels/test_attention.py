"""Attention inside an inner loop has a second derivative, whatever kernels torch would choose."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML
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


def test_dropout_is_no_reason_against_several_tasks_at_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = MAML(Attentive(0.3), inner_steps=1, inner_lr=0.1)
    with caplog.at_level("INFO"):
        module.meta_gradient(noise_episode(shape=SHAPE, dtype=torch.float32))
    assert "vectorized execution over tasks" in caplog.text
