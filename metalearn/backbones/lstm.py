"""A recurrent network for sequences of tokens, of plain operators that can be differentiated twice on every device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.backbones.pooling import PADDING, average_tokens
from metalearn.checks import MOST_OF_A_WIDTH, check_flag, check_number, check_whole

__all__ = ["LSTMClassifier"]


class LSTMClassifier(nn.Module):
    """An LSTM over embedded tokens, the mean of its states, and a linear head.

    Token 0 is padding. It changes no state and is left out of the mean (Hochreiter and Schmidhuber 1997 for the cell). The cell
    is written in plain operators, since cuDNN's has no second derivative.

    Args:
        ways: how many outputs there are, ``N``.
        vocabulary: how many tokens there are, padding included: tokens are ``0..vocabulary-1``.
        embedding: how many numbers a token is embedded in.
        hidden: how many numbers a state has, in each direction.
        bidirectional: whether a second LSTM reads the sequence from its end.
        dropout: the share of the embedding's numbers that training drops.

    Shape:
        Tokens ``[n, L]`` int64 to ``[n, N]``.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> from metalearn import LSTMClassifier
        >>> network = LSTMClassifier(ways=5, vocabulary=100)
        >>> network(torch.tensor([[4, 8, 15, 16], [23, 42, 0, 0]])).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        ways: int = 5,
        vocabulary: int = 20_000,
        embedding: int = 64,
        hidden: int = 64,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole("ways", ways, 1, 100_000)
        check_whole("vocabulary", vocabulary, 2, 10_000_000)
        check_whole("embedding", embedding, 1, MOST_OF_A_WIDTH)
        check_whole("hidden", hidden, 1, MOST_OF_A_WIDTH)
        check_flag("bidirectional", bidirectional)
        check_number("dropout", dropout, "use 0.1", least=0, below=1)
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.onward = LSTMLayer(embedding, hidden)
        self.returning = LSTMLayer(embedding, hidden) if bidirectional else None
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), ways)
        self.init_args = {
            "ways": ways,
            "vocabulary": vocabulary,
            "embedding": embedding,
            "hidden": hidden,
            "bidirectional": bidirectional,
            "dropout": dropout,
        }

    def forward(self, x: Tensor) -> Tensor:
        seen = x != PADDING
        embedded = self.dropout(self.embedding(x))
        states = self.onward(embedded, seen)
        if self.returning is not None:
            back = self.returning(embedded.flip(1), seen.flip(1)).flip(1)
            states = torch.cat([states, back], 2)
        logits: Tensor = self.head(average_tokens(states, seen))
        return logits


class LSTMLayer(nn.Module):
    """One direction of an LSTM; the gates stand in the order of torch's: input, forget, cell, output.

    Args:
        inputs: how many numbers an input has.
        hidden: how many numbers a state has.

    Shape:
        ``[n, L, inputs]`` and which positions are seen ``[n, L]``, to states ``[n, L, hidden]``. Where a position is not seen,
        the state stays.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.from_input = nn.Linear(inputs, 4 * hidden)
        self.from_state = nn.Linear(hidden, 4 * hidden, bias=False)
        nn.init.orthogonal_(self.from_state.weight)
        nn.init.zeros_(self.from_input.bias)
        with torch.no_grad():
            self.from_input.bias[hidden : 2 * hidden] = 1.0  # remember at first (Jozefowicz et al. 2015)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        gates = self.from_input(x)
        state = cell = x.new_zeros(x.shape[0], self.hidden)  # len() would bind an export to one number
        states = []
        for position in range(x.shape[1]):
            entry, forget, new, out = (gates[:, position] + self.from_state(state)).chunk(4, 1)
            later = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
            moves = seen[:, position, None]
            cell = torch.where(moves, later, cell)
            state = torch.where(moves, out.sigmoid() * later.tanh(), state)
            states.append(state)
        return torch.stack(states, 1)
