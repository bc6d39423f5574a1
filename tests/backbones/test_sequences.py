"""Networks of token sequences: padding changes nothing, torch's own layers agree, and meta-gradients are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn import ANIL, MAML, Batch, ConfigError, Episode, LSTMClassifier, TransformerClassifier
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop

LSTM: dict[str, Any] = {"ways": 2, "vocabulary": 12, "embedding": 5, "hidden": 4}
TRANSFORMER: dict[str, Any] = {"ways": 2, "vocabulary": 12, "width": 8, "heads": 2, "layers": 2}
BOTH = [
    (LSTMClassifier, LSTM),
    (LSTMClassifier, {**LSTM, "bidirectional": False}),
    (TransformerClassifier, TRANSFORMER),
]
TOKENS = torch.tensor([[4, 8, 3, 11, 2], [5, 6, 0, 0, 0], [7, 0, 0, 0, 0]])


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_padding_changes_nothing(kind: type[nn.Module], options: dict[str, Any]) -> None:
    network = kind(**options).double()
    alone = torch.cat([network(row[row > 0][None]) for row in TOKENS])
    torch.testing.assert_close(network(TOKENS), alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network(F.pad(TOKENS, (0, 7))), alone, rtol=1e-12, atol=1e-12)
    empty = network(torch.zeros(2, 3, dtype=torch.int64))
    torch.testing.assert_close(empty, network.head.bias.expand(2, -1))  # type: ignore[union-attr, operator]


def test_the_lstm_is_that_of_torch() -> None:
    network = LSTMClassifier(**LSTM).double()
    oracle = nn.LSTM(5, 4, batch_first=True, bidirectional=True).double()
    with torch.no_grad():
        for suffix, layer in (("", network.onward), ("_reverse", network.returning)):
            assert layer is not None
            getattr(oracle, f"weight_ih_l0{suffix}").copy_(layer.from_input.weight)
            getattr(oracle, f"weight_hh_l0{suffix}").copy_(layer.from_state.weight)
            getattr(oracle, f"bias_ih_l0{suffix}").copy_(layer.from_input.bias)
            getattr(oracle, f"bias_hh_l0{suffix}").zero_()
    for row in TOKENS:
        states, _ = oracle(network.embedding(row[row > 0][None]))
        torch.testing.assert_close(network(row[None]), network.head(states.mean(1)), rtol=1e-12, atol=1e-12)


def test_the_transformer_is_that_of_torch() -> None:
    """torch's encoder layers, normalised before each block, on the same weights."""
    network = TransformerClassifier(**TRANSFORMER).double()
    layers = [
        nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).double() for _ in range(2)
    ]
    pairs = {
        "self_attn.in_proj_weight": "projections.weight", "self_attn.in_proj_bias": "projections.bias",
        "self_attn.out_proj.weight": "joined.weight", "self_attn.out_proj.bias": "joined.bias", "norm1.weight": "norms.0.weight",
        "norm1.bias": "norms.0.bias", "norm2.weight": "norms.1.weight", "norm2.bias": "norms.1.bias",
        "linear1.weight": "feed.0.weight", "linear1.bias": "feed.0.bias", "linear2.weight": "feed.2.weight",
        "linear2.bias": "feed.2.bias",
    }  # fmt: skip
    for layer, own in zip(layers, network.body, strict=True):
        layer.load_state_dict({name: own.state_dict()[other] for name, other in pairs.items()})
    positions = torch.arange(5, dtype=torch.float64)[:, None] / 10_000 ** (torch.arange(0, 8, 2) / 8)
    places = torch.empty(5, 8, dtype=torch.float64)
    places[:, ::2], places[:, 1::2] = positions.sin(), positions.cos()
    states = network.embedding(TOKENS) + 0.1 * places
    for layer in layers:
        states = layer(states, src_key_padding_mask=TOKENS == 0)
    states = network.norm(states)
    means = torch.stack([row[tokens > 0].mean(0) for row, tokens in zip(states, TOKENS, strict=True)])
    torch.testing.assert_close(network(TOKENS), network.head(means), rtol=1e-6, atol=1e-7)


def tokens_episode(tasks: int = 2) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Batch:
        x = torch.randint(1, 12, (tasks, 2 * count, 4), generator=generator)
        x[:, ::2, 2:] = 0
        return Batch(x, torch.arange(2).repeat_interleave(count).expand(tasks, -1))

    return Episode(part(2), part(3))


@pytest.mark.parametrize(("kind", "options"), BOTH)
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_the_meta_gradient_is_that_of_a_plain_loop(
    kind: type[nn.Module], options: dict[str, Any], execution: Any
) -> None:
    torch.manual_seed(0)
    network = kind(**options).double()
    module = MAML(network, inner_steps=2, inner_lr=0.3, execution=execution)
    episode = tokens_episode()
    with sdpa_kernel(SDPBackend.MATH):
        expected = plain_loop(network, episode, 2, 0.3, False)
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    assert module.choice is not None
    assert module.choice.name == execution


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_anil_runs_the_head_alone(kind: type[nn.Module], options: dict[str, Any]) -> None:
    module = ANIL(kind(**options), inner_steps=1)
    adapted = module.adapt(Batch(TOKENS[:2], torch.arange(2)))
    assert adapted(TOKENS).shape == (3, 2)


def test_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="use width=64, heads=4"):
        TransformerClassifier(width=10, heads=4)
