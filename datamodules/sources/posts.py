"""The posts of 20 Newsgroups by date, from its archive or its folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metalearn.datamodules.sources.archives import stream_archive
from metalearn.datamodules.sources.downloads import download_by_sha256
from metalearn.errors import DataError

__all__ = ["PARTS", "Posts", "download_posts", "read_posts", "stamp_posts"]

ARCHIVES = ("20news-bydate.tar.xz", "20news-bydate.tar.gz", "20news-bydate.tar")
URL = "https://ndownloader.figshare.com/files/5975967"
"""Where scikit-learn keeps the archive of people.csail.mit.edu/jrennie/20Newsgroups, and fetches it."""
SHA256 = "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610"
PARTS = ("train", "test")
LARGEST_POST = 4 << 20
LARGEST_TOTAL = 1 << 29
MOST_POSTS = 1_000_000


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


def download_posts(root: Path) -> None:
    """Fetch the archive, 14 MB, into a folder that is missing or empty; one that holds anything is left alone.

    Raises:
        DataError: it cannot be fetched, or is not the official file.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        download_by_sha256("20 Newsgroups", root / ARCHIVES[1], URL, SHA256)


def read_posts(root: Path) -> dict[str, Posts]:
    """The posts of both parts, in the order of their paths.

    Raises:
        DataError: there is neither an archive nor the two folders; the archive is damaged, or has an entry that no honest one
            has; or a part has no posts.
    """
    posts: dict[str, list[tuple[str, str, str]]] = {part: [] for part in PARTS}
    total = 0
    for number, (path, data) in enumerate(_open_files(root), 1):
        place = _place_post(path)
        if place is None:
            continue
        part, group, name = place
        total += len(data)
        if number > MOST_POSTS or total > LARGEST_TOTAL:
            raise DataError(
                f"{root} holds more than {MOST_POSTS} posts or {LARGEST_TOTAL} bytes, far more than 20 Newsgroups; it is not "
                "that data set: fetch it again"
            )
        if part in posts:
            posts[part].append((group, name, data.decode("latin-1")))
    for part, rows in posts.items():
        if not rows:
            raise DataError(
                f"{root} has no posts in 20news-bydate-{part}/<group>/<number>; it is truncated or another set: fetch it again"
            )
        rows.sort()
    return {part: Posts(*([row[column] for row in rows] for column in (2, 0, 1))) for part, rows in posts.items()}


def stamp_posts(root: Path) -> list[object]:
    """What tells whether the archive, or the files of the folders, are those that were read before.

    Raises:
        DataError: there is neither an archive nor the two folders.
    """
    folders, packed = _find_files(root)
    files = [packed] if packed is not None else sorted(path for folder in folders for path in folder.glob("*/*"))
    return [(path.parent.name, path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _find_files(root: Path) -> tuple[list[Path], Path | None]:
    """The folders of both parts where both are there, else the archive.

    Raises:
        DataError: there is neither.
    """
    folders = [root / f"20news-bydate-{part}" for part in PARTS]
    if all(folder.is_dir() for folder in folders):
        return folders, None
    packed = [root] if root.is_file() else [root / name for name in ARCHIVES if (root / name).is_file()]
    if not packed:
        raise DataError(
            f"folder {root} has neither {ARCHIVES[0]} nor 20news-bydate-train and 20news-bydate-test; set root to their folder"
        )
    return folders, packed[0]


def _open_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the folders' files where both are there, else of the archive's."""
    folders, packed = _find_files(root)
    return _read_folders(root, folders) if packed is None else stream_archive(packed, LARGEST_POST, "post")


def _place_post(path: str) -> tuple[str, str, str] | None:
    """Part, group and name of a post's file; ``None`` where it is none."""
    steps = [step for step in path.split("/") if step not in ("", ".")]
    top = next((depth for depth, step in enumerate(steps) if step.startswith("20news-bydate-")), None)
    if top is None or len(steps) != top + 3 or steps[top + 2].startswith("."):
        return None
    return steps[top].removeprefix("20news-bydate-"), steps[top + 1], steps[top + 2]


def _read_folders(root: Path, folders: list[Path]) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in sorted(folder.glob("*/*")):
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size > LARGEST_POST:
                raise DataError(
                    f"file {path} has {path.stat().st_size} bytes, but a post has at most {LARGEST_POST}; remove it"
                )
            yield path.relative_to(root).as_posix(), path.read_bytes()
