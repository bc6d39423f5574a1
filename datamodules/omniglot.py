"""Omniglot (Lake et al. 2015): 1,623 handwritten characters, 20 drawings of each."""

from __future__ import annotations

import logging
import re
import statistics
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.checks import MOST_OF_A_WIDTH, Count, check_whole
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.episodes.splits import split_by_hash
from metalearn.datamodules.sources.alphabets import whole_set
from metalearn.datamodules.sources.archives import open_archive
from metalearn.datamodules.sources.images import ImageSpec, Opener, open_later, read_entry
from metalearn.datamodules.sources.listing import stamp_file
from metalearn.datamodules.store.packing import read_classes
from metalearn.datamodules.store.store import Contents, ImageStore, Packer, fingerprint, open_or_pack
from metalearn.errors import ConfigError, DataError

__all__ = ["OmniglotDataModule"]

log = logging.getLogger(__name__)

PARTS = ("images_background", "images_evaluation")
ENTRY = re.compile(r"(?:.*/)?(images_background|images_evaluation)/([^/]+)/(character\d+)/([^/]+\.png)$")
CHARACTERS = 1623
NEARLY = 1000
"""From so many characters on, a set is Omniglot with gaps, not a small set of one's own."""
ROTATIONS = 4
LARGEST_ENTRY = 1 << 20


class OmniglotDataModule(ImageEpisodes):
    """Few-shot episodes of Omniglot: 1,200 characters for training, 100 for validation, 323 for test.

    The split orders characters by a hash of their names: it is a constant, whatever the seed. With ``rotations``, the
    training characters turned by 90, 180 and 270 degrees are classes of their own (4,800 in all), as is the custom since
    Santoro et al. 2016. Strokes are 1, paper is 0.

    Args:
        root: the folder that holds ``images_background.zip`` and ``images_evaluation.zip``, or their extracted trees,
            directly or in ``omniglot-py/``. What is missing is downloaded to it.
        ways: classes a task, ``N``; or the least and the most, ``[5, 20]``: then each task draws its own.
        shots: support images a class, ``K``; or the least and the most.
        queries: query images a class, ``Q``, or the least and the most; ``K + Q`` is at most 20.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width.
        rotations: add the rotated training characters.
        download: fetch what is missing.
        options: see :class:`EpisodeOptions`; the groups of classes are the alphabets.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: an archive is missing, truncated or foreign, a character or a drawing is missing, or the cache cannot be
            written.
    """

    def __init__(
        self,
        root: str = "data/omniglot",
        ways: Count = 5,
        shots: Count = 1,
        queries: Count = 15,
        tasks_per_batch: int = 16,
        train_tasks: int = 4000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 28,
        rotations: bool = True,
        download: bool = True,
        options: EpisodeOptions | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            ways,
            shots,
            queries,
            tasks_per_batch,
            train_tasks,
            val_tasks,
            test_tasks,
            seed,
            num_workers,
            cache_dir,
            options,
        )
        if self.options.rotations:
            raise ConfigError("options.rotations is true, but Omniglot has its own argument for it; use rotations=True")
        check_whole("image_size", image_size, 8, MOST_OF_A_WIDTH)
        self.root = Path(root)
        self.rotations = rotations
        self.download = download
        self.image_spec = ImageSpec(channels=1, size=image_size, invert=True)

    def prepare_data(self) -> None:
        """Download what is missing, pack the images, and check the result."""
        if self.download and self.root is not None:
            _download(self.root)
        super().prepare_data()

    def open_store(self, verify: bool) -> ImageStore:
        drawings = _find(self.root)
        spec = self.packed_spec
        names = sorted(drawings)
        if len(names) != CHARACTERS:
            log.warning("Omniglot has %d of its %d characters here: accuracies do not compare", len(names), CHARACTERS)
        turned = [f"{name}@{90 * turns}" for name in names for turns in range(ROTATIONS)]
        counts = np.repeat([len(drawings[name]) for name in names], ROTATIONS)
        groups = [name.partition("/")[0] for name in turned]
        self.check_contents(Contents(turned, counts, groups, {}))
        source = fingerprint(
            [spec, self.options.skip_broken, *((name, *(entry for entry, _ in drawings[name])) for name in names)]
        )

        def pack(packer: Packer) -> dict[str, Any]:
            readers = [
                (
                    name,
                    [
                        (entry[0].rpartition("/")[2], partial(read_entry, opener, spec, entry[0]))
                        for entry, opener in drawings[name]
                    ],
                )
                for name in names
            ]
            read = read_classes(readers, "packing Omniglot", self.options.skip_broken)
            for name, (images, image_names) in zip(names, read, strict=True):
                for turns in range(ROTATIONS):
                    turned = np.rot90(images, turns, (2, 3))
                    packer.add(f"{name}@{90 * turns}", turned, name.partition("/")[0], image_names)
            return {}

        key = f"omniglot-{spec.size}-{source[:8]}"
        return open_or_pack(key, source, (1, spec.size, spec.size), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        names = [name.removesuffix("@0") for name in store.names[::ROTATIONS]]
        split = split_by_hash(names, (1200, 100, 323) if len(names) == CHARACTERS else (0.74, 0.06, 0.2))
        upright = {part: ROTATIONS * characters for part, characters in split.items()}
        if self.rotations:
            upright["train"] = (upright["train"][:, None] + np.arange(ROTATIONS)).reshape(-1)
        return upright


def _find(root: Path) -> dict[str, list[tuple[tuple[str, int, int], Opener]]]:
    """For each character its drawings: (name, size, checksum or time of writing) and how to open them."""
    found: dict[str, list[tuple[tuple[str, int, int], Opener]]] = {}
    for part in PARTS:
        entries = _from_tree(root, part) or _from_archive(root, part)
        if not entries:
            raise DataError(
                f"Omniglot's {part} is not in {root}: it must hold {part}.zip or the folder {part}; set data.root to the folder "
                "of the official archives, or leave download on with a network"
            )
        for entry, opener in entries:
            match = ENTRY.match(entry[0])
            assert match is not None
            found.setdefault(f"{match[2]}/{match[3]}", []).append((entry, opener))
    for entries in found.values():
        entries.sort(key=lambda pair: pair[0])
    if len(found) < 15:
        raise DataError(f"Omniglot in {root} has {len(found)} characters, but a split into train, val and test needs at least "
                        "15; get the official archives")  # fmt: skip
    _check_whole(root, {name: [entry[0] for entry, _ in entries] for name, entries in found.items()})
    return found


def _check_whole(root: Path, drawings: dict[str, list[str]]) -> None:
    """Raise where characters or drawings are missing: the split would change, and classes cross from one part to another."""
    if len(drawings) >= NEARLY:
        missing, foreign = sorted(whole_set() - drawings.keys()), sorted(drawings.keys() - whole_set())
        if missing:
            raise DataError(
                f"Omniglot in {root} lacks {_some(missing)}: it has {len(drawings)} characters, but a whole set has "
                f"{CHARACTERS}; get the official archives, or remove what was extracted half"
            )
        if foreign:
            raise DataError(
                f"Omniglot in {root} has {_some(foreign)}, which is none of its {CHARACTERS} characters; remove it"
            )
    usual = statistics.mode(map(len, drawings.values()))
    drawers = {name: {file.rpartition("_")[2] for file in files} for name, files in drawings.items()}
    every = set.union(*(drawers[name] for name, files in drawings.items() if len(files) == usual))
    for name, files in drawings.items():
        if len(files) != usual:
            gaps = sorted(every - drawers[name])
            what = f"lacks {_some([f'*_{gap}' for gap in gaps])}" if gaps else f"has {len(files)} drawings"
            raise DataError(
                f"character {name} of Omniglot in {root} {what}, but each must have the same {usual} drawings; get the official "
                "archives"
            )


def _some(names: list[str]) -> str:
    """The first few, in words."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _homes(root: Path) -> list[Path]:
    return [root, root / "omniglot-py"]


def _from_tree(root: Path, part: str) -> list[tuple[tuple[str, int, int], Opener]]:
    for home in _homes(root):
        files = sorted((home / part).glob("*/character*/*.png"))
        if files:
            return [((file.relative_to(home).as_posix(), *stamp_file(file)), open_later(file)) for file in files]
    return []


def _from_archive(root: Path, part: str) -> list[tuple[tuple[str, int, int], Opener]]:
    path = next((home / f"{part}.zip" for home in _homes(root) if (home / f"{part}.zip").is_file()), None)
    if path is None:
        return []
    try:
        archive = open_archive(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"archive {path} cannot be read ({error}); it is truncated or no zip file: fetch it again"
        ) from error
    entries: list[tuple[tuple[str, int, int], Opener]] = [
        ((info.filename, info.file_size, info.CRC), partial(archive.open, info))
        for info in archive.infolist()
        if ENTRY.match(info.filename) and info.file_size <= LARGEST_ENTRY
    ]
    if not entries:
        raise DataError(
            f"archive {path} holds no {part}/ALPHABET/characterNN/*.png, so it is not Omniglot's; fetch the official one"
        )
    return entries


def _download(root: Path) -> None:
    missing = [
        part
        for part in PARTS
        if not any((home / f"{part}.zip").is_file() or (home / part).is_dir() for home in _homes(root))
    ]
    if not missing:
        return
    from torchvision.datasets import Omniglot
    from torchvision.datasets.utils import download_url

    for part in missing:
        url = f"{Omniglot.download_url_prefix}/{part}.zip"
        try:
            download_url(url, str(root), f"{part}.zip", Omniglot.zips_md5[part])
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"Omniglot's {part}.zip is not in {root} and cannot be downloaded from {url} ({error}); fetch it by other means "
                "and set data.root to its folder"
            ) from error
