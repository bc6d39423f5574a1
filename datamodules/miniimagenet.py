"""miniImageNet (Ravi and Larochelle 2017): 100 classes of ImageNet, 64 for training, 16 for validation, 20 for test."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.progress import track

from metalearn.datamodules.archives import open_archive
from metalearn.datamodules.checks import check_at_least
from metalearn.datamodules.folder import list_images
from metalearn.datamodules.image_episodes import ImageEpisodes
from metalearn.datamodules.images import ImageSpec, Opener, open_later, read_entry
from metalearn.datamodules.randomness import SPLITS
from metalearn.datamodules.store import Contents, ImageStore, Packer, fingerprint, open_or_pack, stamp
from metalearn.errors import DataError

__all__ = ["MiniImageNetDataModule"]

LARGEST_ENTRY = 64 << 20
Stamp = tuple[int, int]
"""Size, and time of writing or checksum: what tells an edited image from the one that was packed."""
Listing = list[tuple[str, str, list[tuple[str, Stamp, Opener]]]]


class MiniImageNetDataModule(ImageEpisodes):
    """Few-shot episodes of miniImageNet, or of any data in its format. The whole image is resized to ``image_size``.

    Args:
        root: a folder (or a zip file of one, or a folder with one zip file in it) that holds ``images/`` with
            ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename,label``), or ``train/``, ``val/`` and ``test/``
            with a folder per class.
        ways: classes a task, ``N``.
        shots: support images a class, ``K``.
        queries: query images a class, ``Q``.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing, damaged or foreign, or the cache cannot be written.
    """

    def __init__(
        self,
        root: str = "data/miniimagenet",
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        tasks_per_batch: int = 4,
        train_tasks: int = 1000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 84,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            ways, shots, queries, tasks_per_batch, train_tasks, val_tasks, test_tasks, seed, num_workers, cache_dir
        )
        check_at_least("image_size", image_size, 8)
        self.root = Path(root)
        self.image_spec = ImageSpec(channels=3, size=image_size)

    def open_store(self, verify: bool) -> ImageStore:
        listing = _find(self.root)
        spec = self.packed_spec
        splits = [split for split, _, _ in listing]
        counts = np.asarray([len(found) for _, _, found in listing])
        self.check_contents(Contents([name for _, name, _ in listing], counts, [""] * len(splits), {"splits": splits}))
        files = ((split, name, file, *signs) for split, name, found in listing for file, signs, _ in found)
        source = fingerprint([spec, *files])

        def pack(packer: Packer) -> dict[str, Any]:
            for _, name, found in track(listing, description="packing miniImageNet", transient=True):
                images = np.stack([read_entry(opener, spec, file) for file, _, opener in found])
                packer.add(name, images, "", [file for file, _, _ in found])
            return {"splits": splits}

        key = f"miniimagenet-{spec.size}-{fingerprint([self.root.resolve()])}"
        return open_or_pack(key, source, (3, spec.size, spec.size), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        splits = np.asarray(store.meta["splits"])
        return {split: np.flatnonzero(splits == split) for split in SPLITS}


def _find(root: Path) -> Listing:
    zips = sorted(root.glob("*.zip")) if root.is_dir() else [root]
    if root.is_dir() and all((root / split).is_dir() for split in SPLITS):
        return [
            (split, name, [(str(file), stamp(file), open_later(file)) for file in files])
            for split in SPLITS
            for name, files in list_images(root / split).items()
        ]
    if root.is_dir() and all((root / f"{split}.csv").is_file() for split in SPLITS):
        tables = {split: (root / f"{split}.csv").read_text(encoding="utf-8-sig") for split in SPLITS}
        known = {file.name: (stamp(file), open_later(file)) for file in (root / "images").glob("*")}
        return _from_tables(tables, known, str(root))
    if len(zips) == 1 and zips[0].is_file():
        return _from_zip(zips[0])
    raise DataError(
        f"root {root} holds no miniImageNet: it must hold images/ with train.csv, val.csv and test.csv, or train/, val/ and "
        "test/, or one zip file of that; set data.root to it (miniImageNet's licence does not allow a download by us)"
    )


def _from_zip(path: Path) -> Listing:
    try:
        archive = open_archive(path)
        names = {PurePosixPath(info.filename).name: info for info in archive.infolist() if not info.is_dir()}
        tables = {split: archive.read(names[f"{split}.csv"]).decode("utf-8-sig") for split in SPLITS}
    except KeyError as error:
        raise DataError(
            f"archive {path} holds no {error.args[0]}, so it is no miniImageNet; set data.root to another"
        ) from error
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"archive {path} cannot be read ({error}); it is truncated or no zip file: fetch it again"
        ) from error

    def opener(info: zipfile.ZipInfo) -> Opener:
        return lambda: io.BytesIO(archive.read(info))

    known: dict[str, tuple[Stamp, Opener]] = {
        name: ((info.file_size, info.CRC), opener(info))
        for name, info in names.items()
        if info.file_size <= LARGEST_ENTRY
    }
    return _from_tables(tables, known, str(path))


def _from_tables(tables: dict[str, str], known: dict[str, tuple[Stamp, Opener]], where: str) -> Listing:
    listing: Listing = []
    seen: dict[str, str] = {}
    for split, text in tables.items():
        classes: dict[str, list[tuple[str, Stamp, Opener]]] = {}
        for row in csv.DictReader(io.StringIO(text, newline="")):
            name, label = row.get("filename"), row.get("label")
            if not name or not label:
                raise DataError(f"{split}.csv in {where} must have the columns filename,label; it has {','.join(row)}")
            if name not in known:
                raise DataError(f"{split}.csv names {name}, which is not in {where}; add the image or remove the row")
            if seen.setdefault(label, split) != split:
                raise DataError(
                    f"class {label} is in {seen[label]}.csv and {split}.csv of {where}; a class belongs to one split"
                )
            classes.setdefault(label, []).append((name, *known[name]))
        if not classes:
            raise DataError(f"{split}.csv in {where} lists no image; restore it")
        listing += [(split, label, files) for label, files in sorted(classes.items())]
    return listing
