"""20 Newsgroups by date: posts as sparse TF-IDF features, for the tuning of one l2 penalty a feature."""

from __future__ import annotations

import lzma
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.datamodules.archives import check_name, unsafe
from metalearn.datamodules.bilevel_data import BilevelDataModule, Examples
from metalearn.datamodules.checks import check_at_least
from metalearn.errors import ConfigError, DataError

__all__ = ["NewsgroupsDataModule", "read_posts"]

ARCHIVES = ("20news-bydate.tar.xz", "20news-bydate.tar.gz", "20news-bydate.tar")
PARTS = ("train", "test")
LARGEST_POST = 4 << 20
LARGEST_TOTAL = 1 << 29
MOST_POSTS = 1_000_000
SPLIT = 20210803
"""The constant in the seed of the split."""

Posts = dict[str, tuple[list[str], list[str]]]
"""For ``train`` and ``test`` the posts and the name of each one's group."""


class NewsgroupsDataModule(BilevelDataModule):
    """TF-IDF features of posts: the published training part is cut into the inner loss's examples and the outer loss's, the
    test part is that of the published split by date.

    scikit-learn makes the features (``pip install "metalearn-lightning[text]"``); words and their frequencies are those of
    the published training part. Every training batch is all examples: the problem is deterministic.

    Args:
        root: ``20news-bydate.tar.xz`` (or ``.tar.gz``, ``.tar``), the folder that it is in, or that of
            ``20news-bydate-train`` and ``20news-bydate-test``. An archive is read in place.
        vocabulary: the most frequent words, at most; ``None`` for all, some 130,000.
        val_share: of the training part's posts, which the outer loss gets.
        split_seed: of that cut; the same for all runs unless it is asked for.
        sublinear: whether the count ``c`` of a word enters as ``1 + log c``.
        seed: of nothing but what the module does with it.
        steps_per_epoch: training batches an epoch, on each rank.

    Attributes:
        classes: the groups' names, in the order of their numbers.
        words: the words, in the order of the features.

    Shape:
        ``x`` sparse CSR ``[n, words]`` float32 with rows of length 1, ``y`` ``[n]`` int64, ``index`` ``[n]`` int64.

    Raises:
        ConfigError: an argument is out of range, or scikit-learn is not installed.
        DataError: the data are missing, damaged or unsafe.
    """

    classes: list[str]
    words: list[str]

    def __init__(
        self,
        root: str,
        vocabulary: int | None = 20_000,
        val_share: float = 0.5,
        split_seed: int = 0,
        sublinear: bool = True,
        seed: int = 0,
        steps_per_epoch: int = 100,
    ) -> None:
        super().__init__(None, None, steps_per_epoch, 1 << 30, seed, 0)
        if vocabulary is not None:
            check_at_least("vocabulary", vocabulary, 1)
        if not 0 < val_share < 1:
            raise ConfigError(f"val_share is {val_share}, but it is a share, above 0 and below 1; use 0.5")
        check_at_least("split_seed", split_seed, 0)
        self.root, self.vocabulary, self.val_share = root, vocabulary, val_share
        self.split_seed, self.sublinear = split_seed, sublinear

    def load(self) -> dict[str, Examples]:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ConfigError(
                "NewsgroupsDataModule needs scikit-learn for TF-IDF, which is not installed; run: pip install "
                '"metalearn-lightning[text]"'
            ) from error
        posts = read_posts(Path(self.root))
        self.classes = sorted(set(posts["train"][1]))
        strangers = sorted(set(posts["test"][1]) - set(self.classes))
        if strangers:
            raise DataError(
                f"{self.root} has the group {strangers[0]} in its test part alone, but a model learns groups from the training "
                "part; fetch the data again"
            )
        vectorizer = TfidfVectorizer(max_features=self.vocabulary, sublinear_tf=self.sublinear, dtype=np.float32)
        try:
            features = {"train": vectorizer.fit_transform(posts["train"][0])}
        except ValueError as error:
            raise DataError(f"{self.root} gives no words ({error}); fetch the data again") from error
        features["test"] = vectorizer.transform(posts["test"][0])
        self.words = [str(word) for word in vectorizer.get_feature_names_out()]
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = {part: np.asarray([numbers[name] for name in posts[part][1]], np.int64) for part in PARTS}
        self._matrices = {part: (features[part], labels[part]) for part in PARTS}
        return self._cut()

    def cut_again(self, split_seed: int) -> None:
        """Cut the same posts by another seed, without reading them again."""
        check_at_least("split_seed", split_seed, 0)
        self.setup()
        self.split_seed = split_seed
        self.parts = self._cut()

    def _cut(self) -> dict[str, Examples]:
        matrix, labels = self._matrices["train"]
        count = len(labels)
        order = np.random.default_rng([self.split_seed, SPLIT]).permutation(count)
        held = round(self.val_share * count)
        if not 0 < held < count:
            raise DataError(
                f"{self.root} has {count} training posts, of which val_share={self.val_share} leaves train or val empty; use "
                "more posts or val_share=0.5"
            )
        rows = {"train": np.sort(order[held:]), "val": np.sort(order[:held])}
        parts = {name: _examples(matrix[chosen], labels[chosen]) for name, chosen in rows.items()}
        return {**parts, "test": _examples(*self._matrices["test"])}


def read_posts(root: Path) -> Posts:
    """The posts of both parts, in the order of their paths.

    Raises:
        DataError: there is neither an archive nor the two folders; the archive is damaged, or has an entry that no honest one
            has; or a part has no posts.
    """
    packed = [root] if root.is_file() else [root / name for name in ARCHIVES if (root / name).is_file()]
    folders = [root / f"20news-bydate-{part}" for part in PARTS]
    if all(folder.is_dir() for folder in folders):
        entries = _in_folders(root, folders)
    elif packed:
        entries = _in_archive(packed[0])
    else:
        raise DataError(
            f"folder {root} has neither {ARCHIVES[0]} nor 20news-bydate-train and 20news-bydate-test; set root to their folder"
        )
    found: dict[str, list[tuple[str, str, str]]] = {part: [] for part in PARTS}
    total = 0
    for number, (name, data) in enumerate(entries, 1):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        place = next((at for at, part in enumerate(parts) if part.startswith("20news-bydate-")), None)
        if place is None or len(parts) != place + 3 or parts[place + 2].startswith("."):
            continue
        part = parts[place].removeprefix("20news-bydate-")
        total += len(data)
        if number > MOST_POSTS or total > LARGEST_TOTAL:
            raise DataError(
                f"{root} holds more than {MOST_POSTS} posts or {LARGEST_TOTAL} bytes, far more than 20 Newsgroups; it is not "
                "that data set: fetch it again"
            )
        if part in found:
            found[part].append((parts[place + 1], parts[place + 2], data.decode("latin-1")))
    for part, posts in found.items():
        if not posts:
            raise DataError(
                f"{root} has no posts in 20news-bydate-{part}/<group>/<number>; it is truncated or another set: fetch it again"
            )
        posts.sort()
    return {part: ([post[2] for post in posts], [post[0] for post in posts]) for part, posts in found.items()}


def _in_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents, in one pass over an archive of which nothing is extracted."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for info in archive:
                check_name(path, info.name)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise unsafe(path, info.name, "is a link or a device")
                if info.size > LARGEST_POST:
                    raise unsafe(path, info.name, f"claims {info.size} bytes, more than any post")
                file = archive.extractfile(info)
                assert file is not None
                data = file.read(info.size)
                if len(data) != info.size:
                    raise DataError(f"archive {path}: entry {info.name} is truncated; fetch the archive again")
                yield info.name, data
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"archive {path} cannot be read ({error}); it is truncated or no tar file: fetch it again"
        ) from error


def _in_folders(root: Path, folders: list[Path]) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in sorted(folder.glob("*/*")):
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size > LARGEST_POST:
                raise DataError(
                    f"file {path} has {path.stat().st_size} bytes, but a post has at most {LARGEST_POST}; remove it"
                )
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _examples(matrix: Any, labels: np.ndarray) -> Examples:
    matrix = matrix.tocsr().sorted_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        x = torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)), size=matrix.shape, check_invariants=True,
        )  # fmt: skip
    return Examples(torch.arange(len(labels)), x, torch.from_numpy(labels))
