"""Downloads of official files: fetched by torchvision, compared with their checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metalearn.errors import DataError

__all__ = ["download", "download_by_sha256"]


def download(title: str, root: Path, url: str, md5: str, extract: bool = False) -> None:
    """Fetch a file into a folder, which keeps the name that it has at its source.

    Args:
        title: what messages call it.
        root: the folder.
        url: where it is from.
        md5: its checksum.
        extract: whether its contents are extracted beside it.

    Raises:
        DataError: it cannot be fetched, or is not the official file.
    """
    from torchvision.datasets import utils  # slow to import, and seldom needed

    fetch = utils.download_and_extract_archive if extract else utils.download_url
    try:
        fetch(url, str(root), filename=url.rpartition("/")[2], md5=md5)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{title} is not in {root} and cannot be downloaded from {url} ({error}); fetch it by other means"
            f"{', extract it' if extract else ''} and set data.root to its folder"
        ) from error


def download_by_sha256(title: str, path: Path, url: str, sha256: str) -> None:
    """Fetch a file under a name of ours. It has that name only once it is whole.

    Args:
        title: what messages call it.
        path: the file's.
        url: where it is from.
        sha256: its checksum.

    Raises:
        DataError: it cannot be fetched, or is not the official file.
    """
    from torchvision.datasets import utils  # slow to import, and seldom needed

    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a download that was stopped
    try:
        utils.download_url(url, str(path.parent), filename=part.name)
        with part.open("rb") as file:
            digest = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{title} is not in {path.parent} and cannot be downloaded from {url} ({error}); fetch it by other means and set "
            "data.root to its folder"
        ) from error
    if digest.hexdigest() != sha256:
        part.unlink()
        raise DataError(
            f"{title} from {url} is not the official file, whose SHA-256 is {sha256}; fetch it by other means and set "
            "data.root to its folder"
        )
    part.replace(path)
