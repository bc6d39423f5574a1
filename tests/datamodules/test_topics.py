"""20 Newsgroups as few-shot topics: tokens by hand, a vocabulary of the training topics, and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metalearn import ConfigError, DataError
from metalearn.datamodules import EpisodeOptions, NewsgroupTopicsDataModule
from metalearn.datamodules.topics import TOPICS
from tests.made_bilevel import make_topics

SMALL = {
    "train": ["rec.autos", "sci.med"],
    "val": ["comp.graphics", "comp.windows.x"],
    "test": ["misc.forsale", "talk.politics.misc"],
}
FEW = {"ways": 2, "shots": 2, "queries": 3, "length": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_topics(tmp_path_factory.mktemp("topics"), [topic for topics in SMALL.values() for topic in topics])


def data_of(root: Path, **changed: object) -> NewsgroupTopicsDataModule:
    return NewsgroupTopicsDataModule(str(root), **{**FEW, **changed})  # type: ignore[arg-type]


def test_posts_are_their_words(root: Path) -> None:
    data = data_of(root)
    task = data.episode(0, "train", 0)
    assert task.support.x.shape == (4, 10)
    assert task.support.x.dtype == task.query.x.dtype == torch.int64
    for row in task.support.x.tolist():
        words = [data.words[token - 2] for token in row if token > 0]
        assert words[0] == "re"  # the subject comes first, other headers are left out
        assert words[1].startswith("about")
        assert not {"someone", "from", "lines"} & set(words)
        assert 0 not in row[: len(words)]


def test_the_vocabulary_is_that_of_the_training_topics(root: Path) -> None:
    data = data_of(root, length=30)
    assert {"own0x0", "own1x0"} <= set(data.words)  # the archive's topics are numbered in the order of SMALL
    assert not [word for word in data.words if word.startswith(("own2", "own3", "own4", "own5"))]
    query = data.episode(0, "test", 0).query.x
    assert (query == 1).any()
    assert int(query.max()) < data.vocabulary
    few = data_of(root, vocabulary=5)
    assert len(few.words) == 3
    assert few.words[0] == "re"
    assert int(few.episode(0, "train", 0).query.x.max()) <= 4
    assert any("someone" in word for word in data_of(root, headers=True).words)


def test_the_published_topics_are_split_by_hierarchy() -> None:
    assert {split: len(topics) for split, topics in TOPICS.items()} == {"train": 8, "val": 5, "test": 7}
    assert len({topic for topics in TOPICS.values() for topic in topics}) == 20
    tops = {split: {topic.partition(".")[0] for topic in topics} for split, topics in TOPICS.items()}
    assert sum(map(len, tops.values())) == len(set.union(*tops.values()))


def test_tokens_are_kept(root: Path, tmp_path: Path) -> None:
    first = data_of(root, cache_dir=str(tmp_path))
    first.prepare_data()
    (kept,) = tmp_path.glob("*.store")
    stamp = kept.stat().st_mtime_ns
    second = data_of(root, cache_dir=str(tmp_path))
    second.prepare_data()
    assert torch.equal(first.episode(0, "test", 5).query.x, second.episode(0, "test", 5).query.x)
    assert kept.stat().st_mtime_ns == stamp
    data_of(root, cache_dir=str(tmp_path), length=11).prepare_data()
    assert len(list(tmp_path.glob("*.store"))) == 2


def test_splits_of_ones_own(root: Path) -> None:
    data = data_of(root, splits={"train": SMALL["test"], "test": SMALL["train"]})
    assert data.class_names("train") == SMALL["test"]
    assert "own4x0" in data.words


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"root": "nowhere"}, DataError, "set root to their folder"),
        ({"length": 0}, ConfigError, "length is 0"),
        ({"vocabulary": 2}, ConfigError, "vocabulary is 2"),
        ({"ways": 3}, ConfigError, "use at most 2 ways"),
        ({"queries": 30}, ConfigError, "shots \\+ queries"),
        ({"options": EpisodeOptions(rotations=True)}, ConfigError, "leave it out for posts"),
        ({"splits": {"train": ["rec.boats"]}}, ConfigError, "there is no such class"),
    ],
)
def test_what_is_refused(root: Path, options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        data_of(**{"root": root, **options}).setup()  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
