"""Downloads of official files: fetched by torchvision, compared with their checksums."""

from __future__ import annotations

from pathlib import Path

from metalearn.errors import DataError

__all__ = ["download"]


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
