"""Sequences and texts of a user's own: padded by hand, a vocabulary of the training classes, and one line for what is wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from metalearn import MAML, ConfigError, DataError, LSTMClassifier
from metalearn.datamodules import EpisodeOptions, TokenEpisodes

NUMBERS = np.random.default_rng(0)
CLASSES = [f"class{number}" for number in range(12)]
RAGGED = {name: [NUMBERS.integers(1, 40, NUMBERS.integers(1, 9)).tolist() for _ in range(6)] for name in CLASSES}
SPLITS = {"train": CLASSES[:6], "val": CLASSES[6:9], "test": CLASSES[9:]}
FEW: dict[str, Any] = {"ways": 2, "shots": 2, "queries": 3, "splits": SPLITS}


def pad(row: list[int], length: int) -> tuple[int, ...]:
    return tuple((row + [0] * length)[:length])


@pytest.mark.parametrize("length", [None, 3, 20])
@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_sequences_are_padded_and_keep_their_class(length: int | None, kind: Any) -> None:
    data = TokenEpisodes({name: [kind(row) for row in rows] for name, rows in RAGGED.items()}, length=length, **FEW)
    longest = max(len(row) for rows in RAGGED.values() for row in rows)
    assert data.length == (length or longest)
    assert data.vocabulary == 1 + max(max(pad(row, data.length)) for rows in RAGGED.values() for row in rows)
    assert data.words == []
    homes = {name: {pad(row, data.length) for row in rows} for name, rows in RAGGED.items()}
    for split, names in SPLITS.items():
        task = data.episode(0, split, 5)
        assert task.support.x.dtype == torch.int64
        for label in range(2):
            rows = [*task.support.x[task.support.y == label].tolist(), *task.query.x[task.query.y == label].tolist()]
            assert any(all(tuple(row) in homes[name] for row in rows) for name in names)


def test_texts_are_words_of_the_training_classes() -> None:
    texts = {
        name: [" ".join([f"own{number}", *(f"w{word}" for word in NUMBERS.integers(10, 14, 5)), "a", "The!"]) for _ in range(6)]
        for number, name in enumerate(CLASSES)
    }  # fmt: skip
    data = TokenEpisodes(texts, **FEW)
    counts = Counter(
        word for name in SPLITS["train"] for text in texts[name] for word in text.lower().replace("!", "").split()
    )
    del counts["a"]  # one letter is no word
    assert data.words == sorted(counts, key=lambda word: (-counts[word], word))
    assert data.vocabulary == len(data.words) + 2
    task = data.episode(0, "test", 0)
    for row in task.query.x.tolist():
        assert row[0] == 1  # "own9" is in no training class
        assert [data.words[token - 2] for token in row[1:] if token > 1][-1] == "the"
    few = TokenEpisodes(texts, vocabulary=4, **FEW)
    assert (few.words, few.vocabulary) == (data.words[:2], 4)
    assert int(few.episode(0, "train", 0).query.x.max()) <= 3


def test_a_network_is_trained_on_them() -> None:
    data = TokenEpisodes(RAGGED, train_tasks=4, val_tasks=2, test_tasks=2, **FEW)
    module = MAML(LSTMClassifier(ways=2, vocabulary=data.vocabulary), inner_steps=1)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert "test/acc" in trainer.test(module, datamodule=data, verbose=False)[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ([[1, 2], []], "sequence 1 of class 'class0' is [], but it must hold at least one token"),
        (
            [[3, 0, 2]],
            "of class 'class0' holds 0, but a token is a whole number from 1 to 49, and 0 is padding; add 1",
        ),
        ([[3, -7]], "holds -7"),
        ([[3, 50]], "holds 50, but a token is a whole number from 1 to 49"),
        ([[3, 2.5]], "holds 2.5"),
        ([[3, True]], "holds True"),
        ([[3, None]], "holds None"),
        ([[3, "4"]], "holds '4'"),
        ([np.asarray([2.0])], "holds 2.0"),
        ([np.zeros((2, 3), int)], "holds [0, 0, 0]"),
        ([5, 6], "sequence 0 of class 'class0' is 5, but it must hold at least one token"),
        ([torch.tensor(5)], "is a tensor of shape []"),
        ([None], "is None"),
        ([], "class 'class0' of sequences is [], but it must be a list"),
        ("good morning", "class 'class0' of sequences is 'good morning', but it must be a list"),
        (["good morning"], "class 'class0' of sequences has texts and class 'class1' has numbers"),
    ],
)
def test_what_is_no_sequence_is_one_line(changed: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        TokenEpisodes({**RAGGED, "class0": changed}, vocabulary=50, **FEW)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


@pytest.mark.parametrize(
    ("sequences", "options", "words"),
    [
        ([[1, 2]], {}, "must hold the sequences of each class"),
        ({}, {}, "must hold the sequences of each class"),
        (RAGGED, {"splits": {"train": ["nope"]}}, "no such class"),
        (RAGGED, {"options": EpisodeOptions(normalize=True)}, "options.normalize is given"),
        (RAGGED, {"length": 0}, "length is 0"),
        (RAGGED, {"vocabulary": 2}, "vocabulary is 2"),
    ],
)
def test_wrong_arguments_are_one_line(sequences: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenEpisodes(sequences, **{**FEW, **options})


def test_texts_without_a_word_and_names_that_are_alike() -> None:
    with pytest.raises(DataError, match="text 1 of class 'a' is '!', but it needs a word"):
        TokenEpisodes({"a": ["good morning", "!"], "b": ["so long"]}, **{**FEW, "splits": {"train": ["a", "b"]}})
    with pytest.raises(DataError, match="two classes whose names are the same"):
        TokenEpisodes({1: [[1]], "1": [[2]]}, ways=2)  # type: ignore[dict-item]
