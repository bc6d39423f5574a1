"""Omniglot's official files: archives or their trees, looked through for every drawing of every character."""

from __future__ import annotations

import re
import statistics
from functools import partial
from pathlib import Path

from metalearn.datamodules.sources.alphabets import list_characters
from metalearn.datamodules.sources.archives import list_archive
from metalearn.datamodules.sources.downloads import download
from metalearn.datamodules.sources.images import read_image
from metalearn.datamodules.sources.listing import Entry, read_member, stamp_file
from metalearn.errors import DataError

__all__ = ["CHARACTERS", "download_missing", "list_drawings"]

PARTS = ("images_background", "images_evaluation")
DRAWING = re.compile(r"(?:.*/)?(images_background|images_evaluation)/([^/]+)/(character\d+)/([^/]+\.png)$")
CHARACTERS = 1623
NEARLY = 1000
"""From so many characters on, a set is Omniglot with gaps, not a small set of one's own."""
FEWEST = 15
"""Characters that can be split in three."""
LARGEST_DRAWING = 1 << 20


def list_drawings(root: Path) -> dict[str, list[Entry]]:
    """For each character, ``ALPHABET/characterNN``, its drawings; their names are paths in the official archives.

    Raises:
        DataError: a part, a character or a drawing is missing, or an archive is damaged.
    """
    drawings: dict[str, list[Entry]] = {}
    for part in PARTS:
        entries = _list_tree(root, part) or _list_archive(root, part)
        if not entries:
            raise DataError(
                f"Omniglot's {part} is not in {root}: it must hold {part}.zip or the folder {part}; set data.root to the folder "
                "of the official archives, or leave download on with a network"
            )
        for entry in entries:
            match = DRAWING.match(entry.name)
            assert match is not None
            drawings.setdefault(f"{match[2]}/{match[3]}", []).append(entry)
    for entries in drawings.values():
        entries.sort(key=lambda entry: entry.name)
    if len(drawings) < FEWEST:
        raise DataError(f"Omniglot in {root} has {len(drawings)} characters, but a split into train, val and test needs at least "
                        f"{FEWEST}; get the official archives")  # fmt: skip
    files_of = {name: [entry.name for entry in entries] for name, entries in drawings.items()}
    _check_characters(root, files_of)
    _check_drawings(root, files_of)
    return drawings


def download_missing(root: Path) -> None:
    """Fetch the official archives that are missing.

    Raises:
        DataError: one cannot be fetched.
    """
    missing = [part for part in PARTS if not any(_holds(home, part) for home in _list_homes(root))]
    if not missing:
        return
    from torchvision.datasets import Omniglot  # slow to import, and seldom needed

    for part in missing:
        url = f"{Omniglot.download_url_prefix}/{part}.zip"
        download(f"Omniglot's {part}.zip", root, url, Omniglot.zips_md5[part])


def _list_homes(root: Path) -> list[Path]:
    return [root, root / "omniglot-py"]


def _holds(home: Path, part: str) -> bool:
    return (home / f"{part}.zip").is_file() or (home / part).is_dir()


def _list_tree(root: Path, part: str) -> list[Entry]:
    for home in _list_homes(root):
        files = sorted((home / part).glob("*/character*/*.png"))
        if files:
            names = [file.relative_to(home).as_posix() for file in files]
            return [
                Entry(name, stamp_file(file), partial(read_image, file, name=name))
                for name, file in zip(names, files, strict=True)
            ]
    return []


def _list_archive(root: Path, part: str) -> list[Entry]:
    path = next((home / f"{part}.zip" for home in _list_homes(root) if (home / f"{part}.zip").is_file()), None)
    if path is None:
        return []
    entries = [
        Entry(name, member.stamp, partial(read_member, member, name=name))
        for name, member in list_archive(path).items()
        if DRAWING.match(name) and member.size <= LARGEST_DRAWING
    ]
    if not entries:
        raise DataError(
            f"archive {path} holds no {part}/ALPHABET/characterNN/*.png, so it is not Omniglot's; fetch the official one"
        )
    return entries


def _check_characters(root: Path, files_of: dict[str, list[str]]) -> None:
    """Raise where characters are missing: the split would change, and classes cross from one part to another."""
    if len(files_of) < NEARLY:
        return
    missing, foreign = sorted(list_characters() - files_of.keys()), sorted(files_of.keys() - list_characters())
    if missing:
        raise DataError(
            f"Omniglot in {root} lacks {_join_first(missing)}: it has {len(files_of)} characters, but a whole set has "
            f"{CHARACTERS}; get the official archives, or remove what was extracted half"
        )
    if foreign:
        raise DataError(
            f"Omniglot in {root} has {_join_first(foreign)}, which is none of its {CHARACTERS} characters; remove it"
        )


def _check_drawings(root: Path, files_of: dict[str, list[str]]) -> None:
    """Raise where a character has another number of drawings than most."""
    usual = statistics.mode(map(len, files_of.values()))
    drawers = {name: {file.rpartition("_")[2] for file in files} for name, files in files_of.items()}
    all_drawers = set.union(*(drawers[name] for name, files in files_of.items() if len(files) == usual))
    for name, files in files_of.items():
        if len(files) != usual:
            gaps = [f"*_{gap}" for gap in sorted(all_drawers - drawers[name])]
            fault = f"lacks {_join_first(gaps)}" if gaps else f"has {len(files)} drawings"
            raise DataError(
                f"character {name} of Omniglot in {root} {fault}, but each must have the same {usual} drawings; get the official "
                "archives"
            )


def _join_first(names: list[str]) -> str:
    """The first few, in words."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
