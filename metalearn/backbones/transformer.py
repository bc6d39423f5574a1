"""A small transformer encoder for sequences of tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones.pooling import PADDING, average_tokens
from metalearn.checks import MOST_OF_A_WIDTH, check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["TransformerClassifier"]


class TransformerClassifier(nn.Module):
    """A transformer encoder over embedded tokens, the mean of its outputs, and a linear head (Vaswani et al. 2017).

    Token 0 is padding. It is not attended to and is left out of the mean. Layers are normalised before each block, and places
    are sines and cosines, so that a sequence may have any length.

    Args:
        ways: how many outputs there are, ``N``.
        vocabulary: how many tokens there are, padding included: tokens are ``0..vocabulary-1``.
        width: how many numbers stand for a token, an even number.
        heads: how many attention heads a layer has; they divide ``width``.
        layers: how many layers there are.
        dropout: the share of numbers that training drops, of embeddings and of what each block adds.

    Shape:
        Tokens ``[n, L]`` int64 to ``[n, N]``.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> from metalearn import TransformerClassifier
        >>> network = TransformerClassifier(ways=5, vocabulary=100)
        >>> network(torch.tensor([[4, 8, 15, 16], [23, 42, 0, 0]])).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        ways: int = 5,
        vocabulary: int = 20_000,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole("ways", ways, 1, 100_000)
        check_whole("vocabulary", vocabulary, 2, 10_000_000)
        check_whole("width", width, 2, MOST_OF_A_WIDTH, "use 64")
        check_whole("heads", heads, 1, MOST_OF_A_WIDTH)
        check_whole("layers", layers, 1, 100)
        check_number("dropout", dropout, "use 0.1", least=0, below=1)
        if width % 2 or width % heads:
            raise ConfigError(
                f"width is {width} and heads is {heads}, but width must be even and a multiple of heads; use width=64, heads=4"
            )
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.body = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, ways)
        self.init_args = {
            "ways": ways,
            "vocabulary": vocabulary,
            "width": width,
            "heads": heads,
            "layers": layers,
            "dropout": dropout,
        }

    def forward(self, x: Tensor) -> Tensor:
        seen = x != PADDING
        states = self.embedding(x)
        states = self.dropout(states + 0.1 * _make_places(states))
        # of a sequence of padding alone, the softmax needs some entry
        attended = (seen | ~seen.any(1, keepdim=True))[:, None, None, :]
        for layer in self.body:
            states = layer(states, attended)
        logits: Tensor = self.head(average_tokens(self.norm(states), seen))
        return logits


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward block, each added to what comes in.

    Args:
        width: how many numbers stand for a token.
        heads: of the attention.
        dropout: of what each block adds.

    Shape:
        ``[n, L, width]`` and which positions are attended to ``[n, 1, 1, L]``, to ``[n, L, width]``.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.projections = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        count, length, width = x.shape
        split = self.projections(self.norms[0](x)).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
        x = x + self.dropout(self.joined(mixed.transpose(1, 2).reshape(count, length, width)))
        result: Tensor = x + self.dropout(self.feed(self.norms[1](x)))
        return result


def _make_places(like: Tensor) -> Tensor:
    """Sines and cosines ``[L, width]`` of the positions of states ``[n, L, width]``."""
    length, width = like.shape[1:]
    positions = torch.arange(length, device=like.device, dtype=like.dtype)[:, None]
    steps = torch.arange(0, width, 2, device=like.device, dtype=like.dtype)
    angles = positions * torch.exp(-math.log(10_000.0) / width * steps)
    return torch.stack([angles.sin(), angles.cos()], 2).reshape(length, width)
