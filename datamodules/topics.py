"""20 Newsgroups as few-shot topics: posts as sequences of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.checks import MOST_OF_A_WIDTH, check_whole, read_path
from metalearn.datamodules.episodes.arguments import ClassArguments, Unpack, check_cache, spell_out
from metalearn.datamodules.episodes.classes import ClassEpisodes, Pool
from metalearn.datamodules.episodes.options import refuse_image_options
from metalearn.datamodules.episodes.splits import ClassSplit, assign_splits, number_splits
from metalearn.datamodules.sources.posts import PARTS, download_posts, read_posts, stamp_posts
from metalearn.datamodules.sources.words import encode_texts, make_vocabulary, split_words
from metalearn.datamodules.store.header import fingerprint
from metalearn.datamodules.store.rows import RowClass, open_rows, view_rows
from metalearn.datamodules.store.store import ImageStore
from metalearn.progress import follow

__all__ = ["TOPICS", "NewsgroupTopicsDataModule"]

TOPICS: dict[str, list[str]] = {
    "train": [
        "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey", "sci.crypt", "sci.electronics", "sci.med",
        "sci.space",
    ],
    "val": [
        "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware", "comp.windows.x",
    ],
    "test": [
        "alt.atheism", "misc.forsale", "soc.religion.christian", "talk.politics.guns", "talk.politics.mideast",
        "talk.politics.misc", "talk.religion.misc",
    ],
}  # fmt: skip
"""The topics of each split: those of one part of the hierarchy are together, so that test topics are unlike those of training."""
RECIPE = 1
"""Grows when texts become other tokens than before."""
SUBJECT = re.compile(r"(?:^|[\t\n])subject:([^\t\n]*)", re.IGNORECASE)
BLANK_LINE = re.compile(r"\t\t|\n\r?\n")


class NewsgroupTopicsDataModule(ClassEpisodes):
    """Few-shot topics of 20 Newsgroups: 8 topics for training, 5 for validation, 7 for test.

    A post is the sequence of its words: first those of its subject, then those of its text. Tokens are numbered by frequency from
    2 on. Token 0 is padding, and token 1 is every word outside the vocabulary. The vocabulary is that of the training topics
    alone. Posts of both published parts are used.

    Args:
        root: ``20news-bydate.tar.xz`` (or ``.tar.gz``, ``.tar``), the folder that it is in, or that of
            ``20news-bydate-train`` and ``20news-bydate-test``. Where it is missing or empty, the archive is downloaded to it.
        length: how many tokens a post has, ``L``. Longer posts are cut, shorter ones are padded.
        vocabulary: how many tokens there are at most, padding included. Build the network with the same number.
        headers: whether a post's further header lines are kept, such as its writer's address. They tell topics apart without
            a look at the text.
        download: fetch the archive where ``root`` holds nothing.
        splits: the topics of ``train``, ``val`` and ``test`` by name, or three fractions, by which they are cut in the order of a
            hash of their names. ``None`` for ``sci`` and ``rec`` in training, ``comp`` in validation, the others in test.
        cache_dir: where the tokens are kept; ``None`` for METALEARN_CACHE or the user's cache folder.
        options: further options of episodes. ``rotations``, ``augment``, ``normalize`` and ``skip_broken`` are for images. The
            groups of classes are the first parts of their names, such as ``sci``.

    Attributes:
        words: the words of the vocabulary; that of token ``t`` is ``words[t - 2]``.

    Shape:
        ``x`` ``[B, n, L]`` int64, ``y`` ``[B, n]`` int64.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the data are missing, damaged or unsafe, or the cache cannot be written.

    Example:
        >>> from metalearn.datamodules import NewsgroupTopicsDataModule
        >>> data = NewsgroupTopicsDataModule("data/newsgroups", ways=5, shots=5, length=64)
        >>> data.length, data.vocabulary
        (64, 20000)
    """

    @spell_out(ClassArguments, queries=15)
    def __init__(
        self,
        root: str = "data/newsgroups",
        *,
        length: int = 64,
        vocabulary: int = 20_000,
        headers: bool = False,
        download: bool = True,
        splits: ClassSplit | None = None,
        cache_dir: str | None = None,
        **arguments: Unpack[ClassArguments],
    ) -> None:
        super().__init__(**arguments)
        self.root = read_path("root", root, "give the folder of the data")
        check_whole("length", length, 1, MOST_OF_A_WIDTH, "use 64")
        check_whole("vocabulary", vocabulary, 3, 10_000_000, "use 20000")
        check_cache("cache_dir", cache_dir)
        refuse_image_options(self.options, "posts", ("rotations", "augment", "normalize", "skip_broken"))
        self.length, self.vocabulary, self.headers, self.download = length, vocabulary, headers, download
        self.splits_by: ClassSplit = TOPICS if splits is None else splits
        self.splits_are_own = splits is not None
        self.cache_dir = cache_dir
        self._store: ImageStore | None = None

    @property
    def splits_are_chosen(self) -> bool:
        return self.splits_are_own

    @property
    def words(self) -> list[str]:
        """The words of the vocabulary; that of token ``t`` is ``words[t - 2]``."""
        self.ready()
        assert self._store is not None
        words: list[str] = self._store.meta["words"]
        return words

    def prepare_data(self) -> None:
        """Download the posts, if they are missing, and keep their tokens, if they are not kept yet."""
        if self.download:
            download_posts(self.root)
        self._open().verify()

    def open_pool(self) -> tuple[Pool, dict[str, np.ndarray]]:
        store = self._store = self._open()
        pool = Pool(store.names, store.counts, store.offsets, store.groups)
        return pool, number_splits(store.names, self._split(store.names))

    def take(self, rows: np.ndarray, turns: np.ndarray | None) -> Tensor:
        assert self._store is not None
        return torch.from_numpy(np.take(view_rows(self._store, np.int32), rows, axis=0).astype(np.int64))

    def _split(self, names: list[str]) -> dict[str, str]:
        if self.splits_are_own:
            return assign_splits(names, self.splits_by)
        return {name: split for split, topics in TOPICS.items() for name in topics if name in names}

    def _open(self) -> ImageStore:
        parts = [RECIPE, self.length, self.vocabulary, self.headers, self.splits_by, *stamp_posts(self.root)]
        source = fingerprint(parts)
        words: list[str] = []

        def read_classes() -> Iterator[RowClass]:
            posts = read_posts(self.root)
            pairs = [pair for part in PARTS for pair in zip(posts[part].groups, posts[part].texts, strict=True)]
            texts: dict[str, list[list[str]]] = {name: [] for name in sorted({group for group, _ in pairs})}
            for group, text in follow(pairs, "reading posts"):
                texts[group].append(split_words(text if self.headers else _drop_headers(text)))
            split = self._split(list(texts))
            trains = (post for name, posts in texts.items() if split.get(name) == "train" for post in posts)
            words[:] = make_vocabulary(trains, self.vocabulary)
            for name in texts:
                yield name, encode_texts(texts[name], words, self.length), name.partition(".")[0]

        def describe() -> dict[str, Any]:
            return {"words": words}

        key = f"newsgroups-{self.length}-{source[:8]}"
        return open_rows(key, source, self.length, np.int32, read_classes, self.cache_dir, describe)


def _drop_headers(post: str) -> str:
    """The subject of a post and its text, without the other lines before the first blank one."""
    head, *text = BLANK_LINE.split(post, maxsplit=1)
    subject = SUBJECT.search(head)
    if not text or ":" not in head:
        return post
    return f"{subject[1] if subject else ''}\n{text[0]}"
