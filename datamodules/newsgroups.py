"""20 Newsgroups by date: posts as sparse TF-IDF features, for the tuning of one l2 penalty a feature."""

from __future__ import annotations

import lzma
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from metalearn.checks import check_seed, check_whole
from metalearn.datamodules.levels.base import BilevelDataModule, Examples
from metalearn.datamodules.sources.archives import check_name, unsafe
from metalearn.errors import ConfigError, DataError

__all__ = ["NewsgroupsDataModule", "Posts", "read_posts"]

ARCHIVES = ("20news-bydate.tar.xz", "20news-bydate.tar.gz", "20news-bydate.tar")
PARTS = ("train", "test")
LARGEST_POST = 4 << 20
LARGEST_TOTAL = 1 << 29
MOST_POSTS = 1_000_000
SPLIT = 20210803
"""The constant in the seed of the split."""

Cut = Literal["random", "date"]


class Posts(NamedTuple):
    """The posts of a part.

    Attributes:
        texts: of each.
        groups: the name of each one's group.
        names: of each one's file, which begins with a number that its group's server counted up.
    """

    texts: list[str]
    groups: list[str]
    names: list[str]


class NewsgroupsDataModule(BilevelDataModule):
    """TF-IDF features of posts: the published training part is cut into the inner loss's examples and the outer loss's, the
    test part is that of the published split by date.

    scikit-learn makes the features (``pip install "metalearn-lightning[text]"``); words and their frequencies are those of
    the published training part. Every training batch is all examples: the problem is deterministic.

    Args:
        root: ``20news-bydate.tar.xz`` (or ``.tar.gz``, ``.tar``), the folder that it is in, or that of
            ``20news-bydate-train`` and ``20news-bydate-test``. An archive is read in place.
        vocabulary: the most frequent words, at most; ``None`` for all, some 130,000.
        val_share: of the training part's posts, for validation; the outer loss gets them, but for the held out.
        held_share: of these posts, which neither loss gets: by them the Trainer validates, and they say when to stop.
        cut: ``random``, or ``date``: in each group the later posts, in the order of their numbers, are for validation, the
            latest of them held out. The test part is later than all of them.
        used_share: of the training part's posts, drawn by ``split_seed``; the others are left out.
        split_seed: of these draws; the same for all runs unless it is asked for.
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
        held_share: float = 0.0,
        cut: Cut = "random",
        used_share: float = 1.0,
        split_seed: int = 0,
        sublinear: bool = True,
        seed: int = 0,
        steps_per_epoch: int = 100,
    ) -> None:
        super().__init__(None, None, steps_per_epoch, 1 << 30, seed, 0)
        if vocabulary is not None:
            check_whole("vocabulary", vocabulary, 1)
        if not 0 < val_share < 1:
            raise ConfigError(f"val_share is {val_share}, but it is a share, above 0 and below 1; use 0.5")
        if not 0 <= held_share < 1:
            raise ConfigError(f"held_share is {held_share}, but it is a share, from 0 to below 1; use 0.25")
        if not 0 < used_share <= 1:
            raise ConfigError(f"used_share is {used_share}, but it is a share, above 0 and at most 1; use 1.0")
        if cut not in get_args(Cut):
            raise ConfigError(f"cut is {cut!r}, but it must be one of {', '.join(get_args(Cut))}; use 'date'")
        check_seed("split_seed", split_seed)
        self.root, self.vocabulary, self.val_share = root, vocabulary, val_share
        self.held_share, self.cut, self.used_share = held_share, cut, used_share
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
        order = np.random.default_rng([self.split_seed, SPLIT]).permutation(count)[::-1][
            : round(self.used_share * count)
        ]
        rows: dict[str, list[np.ndarray]] = {"train": [], "val": [], "held": []}
        for each in self._by_date(order, labels) if self.cut == "date" else [order]:
            later = len(each) - round(self.val_share * len(each))
            latest = len(each) - round(self.held_share * (len(each) - later))
            for name, chosen in zip(rows, np.split(each, [later, latest]), strict=True):
                rows[name].append(chosen)
        parts = {}
        for name, pieces in rows.items():
            joined = np.sort(np.concatenate(pieces))
            if len(joined):
                parts[name] = _examples(matrix[joined], labels[joined])
            elif name != "held" or self.held_share > 0:
                raise DataError(
                    f"{self.root} has {len(order)} training posts to use, of which val_share={self.val_share} and "
                    f"held_share={self.held_share} leave {name} empty; use more posts or val_share=0.5"
                )
        return {**parts, "test": _examples(*self._matrices["test"])}

    def _by_date(self, order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """The posts of each group from the first to the last."""
        numbers = np.asarray([self._number(name) for name in self._names])
        ranked = order[np.argsort(numbers[order], kind="stable")]
        return [ranked[labels[ranked] == group] for group in range(len(self.classes))]

    def _number(self, name: str) -> int:
        found = re.match(r"[0-9]{1,18}", name)
        if found is None:
            raise DataError(
                f"{self.root} has the post {name!r}, but cut='date' goes by the number at the start of a name; rename it, or "
                "use cut='random'"
            )
        return int(found[0])


def read_posts(root: Path) -> dict[str, Posts]:
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
    return {part: Posts(*([post[place] for post in posts] for place in (2, 0, 1))) for part, posts in found.items()}


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
