"""Sequences of tokens, or texts, of a user's own: padded to one length, with the classes they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.checks import MOST_OF_A_WIDTH, check_whole, quote_value
from metalearn.datamodules.episodes.arguments import ClassArguments, Unpack, spell_out
from metalearn.datamodules.episodes.classes import ClassEpisodes, Pool
from metalearn.datamodules.episodes.options import refuse_image_options
from metalearn.datamodules.episodes.splits import ClassSplit, assign_splits, number_splits
from metalearn.datamodules.sources.words import PADDING, encode_texts, make_vocabulary, pad_sequences, split_words
from metalearn.errors import ConfigError, DataError

__all__ = ["TokenEpisodes"]

MOST_TOKENS = 10_000_000
MOST_WORDS = 20_000
"""Tokens of a vocabulary of words, where the user says nothing else."""


class TokenEpisodes(ClassEpisodes):
    """Episodes of sequences of tokens, or of texts, that are at hand in Python.

    Token 0 is padding. The networks ``LSTMClassifier`` and ``TransformerClassifier`` leave it out. Texts are split into words,
    in lower case. The vocabulary is that of the training classes. Its words are numbered from 2 on, the most frequent one first.
    Any other word is token 1.

    Args:
        sequences: for each class, by its name, its sequences of whole numbers from 1 on; or its texts. Their lengths may differ.
        length: how many tokens an example has, ``L``. Longer ones are cut, shorter ones are padded. ``None`` for those of the
            longest.
        vocabulary: how many tokens there are, padding included. ``None`` for as many as the sequences have, or for 20,000 at most
            of texts. Build the network with ``vocabulary=data.vocabulary``.
        splits: the classes of ``train``, ``val`` and ``test`` by name, or three fractions, by which they are cut in the order
            of a hash of their names.
        options: further options of episodes. ``rotations``, ``augment``, ``normalize`` and ``skip_broken`` are for images.

    Attributes:
        vocabulary: how many tokens there are.
        words: the words of the vocabulary; that of token ``t`` is ``words[t - 2]``. Empty where ``sequences`` are numbers.

    Shape:
        ``x`` ``[B, n, L]`` int64 and ``y`` ``[B, n]`` int64.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a sequence is empty, or holds what is no token.

    Example:
        >>> from metalearn.datamodules import TokenEpisodes
        >>> greetings = {"english": ["good morning", "good evening to you"], "french": ["bonjour madame", "bonsoir"]}
        >>> data = TokenEpisodes(greetings, ways=2, shots=1, queries=1, splits={"train": ["english", "french"]})
        >>> data.length, data.words[0], data.episode(seed=0, split="train", index=0).support.x.shape
        (4, 'good', torch.Size([2, 4]))
    """

    @spell_out(ClassArguments)
    def __init__(
        self,
        sequences: Mapping[str, Sequence[Sequence[int]]] | Mapping[str, Sequence[str]],
        *,
        length: int | None = None,
        vocabulary: int | None = None,
        splits: ClassSplit = (0.64, 0.16, 0.2),
        **arguments: Unpack[ClassArguments],
    ) -> None:
        super().__init__(**arguments)
        if length is not None:
            check_whole("length", length, 1, MOST_OF_A_WIDTH, "use 64")
        if vocabulary is not None:
            check_whole("vocabulary", vocabulary, 3, MOST_TOKENS, "use 20000")
        refuse_image_options(self.options, "tokens", ("rotations", "augment", "normalize", "skip_broken"))
        examples = _check_classes(sequences)
        self._names = sorted(examples)
        self.splits_by: ClassSplit = splits
        self._split = assign_splits(self._names, splits)
        are_texts = isinstance(examples[self._names[0]][0], str)
        tokens = _split_texts(examples) if are_texts else _check_tokens(examples, vocabulary)
        self.length = length or min(max(len(words) for rows in tokens.values() for words in rows), MOST_OF_A_WIDTH)
        self.words: list[str] = []
        if are_texts:
            trains = (row for name in self._names if self._split.get(name) == "train" for row in tokens[name])
            self.words = make_vocabulary(trains, vocabulary or MOST_WORDS)
            parts = [encode_texts(tokens[name], self.words, self.length) for name in self._names]
        else:
            parts = [pad_sequences(tokens[name], self.length) for name in self._names]
        self.vocabulary = vocabulary or (
            len(self.words) + 2 if are_texts else 1 + max(int(part.max()) for part in parts)
        )
        self._tokens = np.concatenate(parts)
        self._counts = np.asarray([len(part) for part in parts])

    def open_pool(self) -> tuple[Pool, dict[str, np.ndarray]]:
        return Pool.of(self._names, self._counts), number_splits(self._names, self._split)

    def take(self, rows: np.ndarray, turns: np.ndarray | None) -> Tensor:
        return torch.from_numpy(np.take(self._tokens, rows, axis=0).astype(np.int64))


def _check_classes(sequences: Any) -> dict[str, list[Any]]:
    """The examples of each class, all of them texts or all of them not.

    Raises:
        ConfigError: they are not by class.
        DataError: a class has none, or texts and numbers are mixed.
    """
    if not isinstance(sequences, Mapping) or not sequences:
        raise ConfigError(
            f"sequences is {quote_value(sequences)}, but it must hold the sequences of each class by the class's name; give a "
            "dict such as {'greetings': [[5, 2], [7]]}"
        )
    examples: dict[str, list[Any]] = {}
    kinds: dict[bool, str] = {}
    for name, rows in sequences.items():
        if isinstance(rows, str) or not isinstance(rows, (Sequence, np.ndarray, Tensor)) or not len(rows):
            raise DataError(
                f"class {name!r} of sequences is {quote_value(rows)}, but it must be a list of sequences or texts; add some, or "
                "leave the class out"
            )
        examples[str(name)] = list(rows)
        for row in rows:
            kinds.setdefault(isinstance(row, str), str(name))
    if len(kinds) > 1:
        raise DataError(
            f"class {kinds[True]!r} of sequences has texts and class {kinds[False]!r} has numbers, but all must be alike; make "
            "numbers of the texts, or texts of the numbers"
        )
    if len(examples) < len(sequences):
        raise DataError(
            "sequences has two classes whose names are the same as text, but a name is of one class; rename one"
        )
    return examples


def _split_texts(examples: Mapping[str, list[str]]) -> dict[str, list[list[str]]]:
    """The words of each text.

    Raises:
        DataError: a text has none.
    """
    words = {name: [split_words(text) for text in texts] for name, texts in examples.items()}
    for name, rows in words.items():
        for number, row in enumerate(rows):
            if not row:
                raise DataError(
                    f"text {number} of class {name!r} is {quote_value(examples[name][number])}, but it needs a word of two "
                    "letters or digits; leave it out"
                )
    return words


def _check_tokens(examples: Mapping[str, list[Any]], vocabulary: int | None) -> dict[str, list[list[int]]]:
    """The tokens of each sequence as plain whole numbers.

    Raises:
        DataError: a sequence is empty, or holds what is no token.
    """
    tokens = {}
    for name, rows in examples.items():
        tokens[name] = [
            _read_tokens(row, f"sequence {number} of class {name!r}", vocabulary) for number, row in enumerate(rows)
        ]
    return tokens


def _read_tokens(row: Any, what: str, vocabulary: int | None) -> list[int]:
    values = row.tolist() if isinstance(row, (np.ndarray, Tensor)) else row
    if not isinstance(values, Sequence) or not len(values):
        raise DataError(
            f"{what} is {quote_value(row)}, but it must hold at least one token; leave it out, or give a list of whole numbers"
        )
    top = MOST_TOKENS if vocabulary is None else vocabulary
    for value in values:
        if not isinstance(value, Integral) or isinstance(value, bool) or not PADDING < value < top:
            remedy = "add 1 to all tokens" if value == PADDING else "number tokens from 1, or raise vocabulary"
            raise DataError(
                f"{what} holds {quote_value(value)}, but a token is a whole number from 1 to {top - 1:,}, and 0 is padding; "
                f"{remedy}"
            )
    return [int(value) for value in values]
