"""20 Newsgroups by date: posts as sparse TF-IDF features, for the tuning of one l2 penalty a feature."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from metalearn.checks import check_choice, check_flag, check_number, check_seed, check_whole, read_path
from metalearn.datamodules.episodes.randomness import CONSTANT, make_generator
from metalearn.datamodules.levels.base import BilevelDataModule, Examples
from metalearn.datamodules.sources.posts import PARTS, download_posts, read_posts
from metalearn.errors import ConfigError, DataError

__all__ = ["Cut", "NewsgroupsDataModule"]

Cut = Literal["random", "date"]


class NewsgroupsDataModule(BilevelDataModule):
    """TF-IDF features of the posts of 20 Newsgroups, for a penalty that is tuned for each feature.

    The published training part is cut into the inner loss's examples and the outer loss's. The test part is that of the
    published split by date. scikit-learn makes the features (``pip install "metalearn-lightning[text]"``). Words and their
    frequencies are those of the published training part. Every training batch is all examples: the problem is deterministic.

    Args:
        root: ``20news-bydate.tar.xz`` (or ``.tar.gz``, ``.tar``), the folder that it is in, or that of
            ``20news-bydate-train`` and ``20news-bydate-test``. An archive is read in place. Where ``root`` is missing or empty,
            the archive is downloaded to it.
        vocabulary: how many of the most frequent words are used, at most; ``None`` for all, some 130,000.
        val_share: which share of the training part's posts is for validation. The outer loss gets them, but for the
            held out.
        held_share: which share of these posts neither loss gets. The Trainer validates by them, and they say when to
            stop.
        cut: which posts are for validation. ``random`` draws them. ``date`` takes the later posts of each group, by their
            numbers, and holds the latest of these out. The test part is later than all of them.
        used_share: which share of the training part's posts is used, drawn by ``split_seed``.
        split_seed: the seed of these draws. It is apart from ``seed``, so that all runs share one split.
        sublinear: whether the count ``c`` of a word enters as ``1 + log c``.
        seed: the seed of training batches; here each of them is all examples, so nothing depends on it.
        steps_per_epoch: how many training batches make an epoch, on each rank.
        download: fetch the archive where ``root`` holds nothing.

    Attributes:
        classes: the groups' names, in the order of their numbers.
        words: the words, in the order of the features.

    Shape:
        ``x`` sparse CSR ``[n, words]`` float32 with rows of length 1, ``y`` ``[n]`` int64, ``index`` ``[n]`` int64.

    Raises:
        ConfigError: an argument is out of range, or scikit-learn is not installed.
        DataError: the data are missing, damaged or unsafe.

    Example:
        >>> from metalearn.datamodules import NewsgroupsDataModule
        >>> data = NewsgroupsDataModule("data/newsgroups", vocabulary=5000, cut="date")
        >>> data.vocabulary, data.val_share
        (5000, 0.5)
    """

    classes: list[str]
    words: list[str]

    def __init__(
        self,
        root: str,
        vocabulary: int | None = 20_000,
        val_share: float = 0.5,
        held_share: float = 0.0,
        cut: Cut = "random",
        used_share: float = 1.0,
        split_seed: int = 0,
        sublinear: bool = True,
        seed: int = 0,
        steps_per_epoch: int = 100,
        download: bool = True,
    ) -> None:
        super().__init__(None, None, steps_per_epoch, 1 << 30, seed, 0)
        if vocabulary is not None:
            check_whole("vocabulary", vocabulary, 1)
        read_path("root", root, "give the folder of the data")
        check_number("val_share", val_share, "use 0.5", above=0, below=1)
        check_number("held_share", held_share, "use 0.25", least=0, below=1)
        check_number("used_share", used_share, "use 1.0", above=0, most=1)
        check_choice("cut", cut, get_args(Cut))
        check_flag("sublinear", sublinear)
        check_flag("download", download)
        check_seed("split_seed", split_seed)
        self.root, self.vocabulary, self.val_share = root, vocabulary, val_share
        self.held_share, self.cut, self.used_share = held_share, cut, used_share
        self.split_seed, self.sublinear, self.download = split_seed, sublinear, download

    def prepare_data(self) -> None:
        """Download the posts, if they are missing."""
        if self.download:
            download_posts(Path(self.root))

    def load(self) -> dict[str, Examples]:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ConfigError(
                "NewsgroupsDataModule needs scikit-learn for TF-IDF, which is not installed; run: pip install "
                '"metalearn-lightning[text]"'
            ) from error
        posts = read_posts(Path(self.root))
        self.classes = sorted(set(posts["train"].groups))
        strangers = sorted(set(posts["test"].groups) - set(self.classes))
        if strangers:
            raise DataError(
                f"{self.root} has the group {strangers[0]} in its test part alone, but a model learns groups from the training "
                "part; fetch the data again"
            )
        vectorizer = TfidfVectorizer(max_features=self.vocabulary, sublinear_tf=self.sublinear, dtype=np.float32)
        try:
            features = {"train": vectorizer.fit_transform(posts["train"].texts)}
        except ValueError as error:
            raise DataError(f"{self.root} gives no words ({error}); fetch the data again") from error
        features["test"] = vectorizer.transform(posts["test"].texts)
        self.words = [str(word) for word in vectorizer.get_feature_names_out()]
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = {part: np.asarray([numbers[name] for name in posts[part].groups], np.int64) for part in PARTS}
        self._matrices = {part: (features[part], labels[part]) for part in PARTS}
        self._names = posts["train"].names
        return self._cut()

    def cut_again(self, split_seed: int) -> None:
        """Cut the same posts by another seed, without reading them again."""
        check_seed("split_seed", split_seed)
        self.setup()
        self.split_seed = split_seed
        self.parts = self._cut()

    def _cut(self) -> dict[str, Examples]:
        matrix, labels = self._matrices["train"]
        count = len(labels)
        order = make_generator(self.split_seed, CONSTANT).permutation(count)[::-1][: round(self.used_share * count)]
        rows: dict[str, list[np.ndarray]] = {"train": [], "val": [], "held": []}
        for posts in self._sort_by_date(order, labels) if self.cut == "date" else [order]:
            later = len(posts) - round(self.val_share * len(posts))
            latest = len(posts) - round(self.held_share * (len(posts) - later))
            for name, chosen in zip(rows, np.split(posts, [later, latest]), strict=True):
                rows[name].append(chosen)
        parts = {}
        for name, pieces in rows.items():
            joined = np.sort(np.concatenate(pieces))
            if len(joined):
                parts[name] = _make_examples(matrix[joined], labels[joined])
            elif name != "held" or self.held_share > 0:
                raise DataError(
                    f"{self.root} has {len(order)} training posts to use, of which val_share={self.val_share} and "
                    f"held_share={self.held_share} leave {name} empty; use more posts or val_share=0.5"
                )
        return {**parts, "test": _make_examples(*self._matrices["test"])}

    def _sort_by_date(self, order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """The posts of each group from the first to the last."""
        numbers = np.asarray([self._read_number(name) for name in self._names])
        ranked = order[np.argsort(numbers[order], kind="stable")]
        return [ranked[labels[ranked] == group] for group in range(len(self.classes))]

    def _read_number(self, name: str) -> int:
        number = re.match(r"[0-9]{1,18}", name)
        if number is None:
            raise DataError(
                f"{self.root} has the post {name!r}, but cut='date' goes by the number at the start of a name; rename it, or "
                "use cut='random'"
            )
        return int(number[0])


def _make_examples(matrix: Any, labels: np.ndarray) -> Examples:
    matrix = matrix.tocsr().sorted_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        x = torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)), size=matrix.shape, check_invariants=True,
        )  # fmt: skip
    return Examples(torch.arange(len(labels)), x, torch.from_numpy(labels))
