"""Texts as tokens: words, a vocabulary of them, and sequences that are cut or padded to one length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["FIRST_WORD", "PADDING", "UNKNOWN", "encode_texts", "make_vocabulary", "pad_sequences", "split_words"]

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
"""The token that fills short texts up, that of words which are in no vocabulary, and that of the most frequent word."""
WORD = re.compile(r"[^\W_]{2,}")


def split_words(text: str) -> list[str]:
    """The words of a text: runs of at least two letters or digits, in lower case."""
    return WORD.findall(text.lower())


def make_vocabulary(texts: Iterable[Sequence[str]], size: int) -> list[str]:
    """The most frequent words of texts that were split, the most frequent one first, and of equals the first by alphabet.

    Args:
        texts: the words of each.
        size: how many tokens there are at most, padding and unknown words included.
    """
    counts: Counter[str] = Counter()
    for words in texts:
        counts.update(words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[: max(size - FIRST_WORD, 0)]


def encode_texts(texts: Iterable[Sequence[str]], vocabulary: Sequence[str], length: int) -> np.ndarray:
    """Tokens ``[n, length]`` int32 of texts that were split; the words after ``length`` are left out."""
    numbers = {word: number for number, word in enumerate(vocabulary, FIRST_WORD)}
    return pad_sequences([[numbers.get(word, UNKNOWN) for word in words[:length]] for words in texts], length)


def pad_sequences(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Tokens ``[n, length]`` int32 of sequences, with :data:`PADDING` behind the short ones."""
    tokens = np.full((len(sequences), length), PADDING, np.int32)
    for row, sequence in zip(tokens, sequences, strict=True):
        kept = sequence[:length]
        row[: len(kept)] = kept
    return tokens
