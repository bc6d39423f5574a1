"""Reading many images at once, in order, with progress."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from metalearn.errors import DataError
from metalearn.progress import Progress

__all__ = ["read_classes"]

log = logging.getLogger(__name__)

AHEAD = 1024
"""Images that are read ahead of the one that is packed, so that memory stays bounded."""

Reader = Callable[[], np.ndarray]


def read_classes(
    classes: Sequence[tuple[str, Sequence[tuple[str, Reader]]]], title: str, skip_broken: bool
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Read the images of classes, several at once, and yield them class by class in the order given.

    Pillow decodes and resizes outside of Python's lock, so threads are enough.

    Args:
        classes: for each class its name, and for each of its images a name and what reads it.
        title: what the progress bar says.
        skip_broken: leave out images that cannot be read, and name them in the log.

    Yields:
        for each class, uint8 images ``[n, C, H, W]`` and their names.

    Raises:
        DataError: an image cannot be read, or none of a class can.
    """
    shown = Progress(title, sum(len(images) for _, images in classes))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads, shown as progress:
        results = _read_ahead(threads, [image for _, images in classes for image in images])
        try:
            for label, images in classes:
                pixels, names = [], []
                for name, future in itertools.islice(results, len(images)):
                    try:
                        pixels.append(future.result())
                    except DataError as error:
                        if not skip_broken:
                            raise
                        log.warning("%s: left out, as skip_broken says", error)
                    else:
                        names.append(name)
                    progress.advance()
                if not pixels:
                    raise DataError(
                        f"class {label} has no image that can be read; replace its images or remove the class"
                    )
                yield np.stack(pixels), names
        finally:
            threads.shutdown(cancel_futures=True)


def _read_ahead(
    threads: ThreadPoolExecutor, images: Sequence[tuple[str, Reader]]
) -> Iterator[tuple[str, Future[np.ndarray]]]:
    """Each image's name and what will be its pixels, in order; :data:`AHEAD` of them are read at once."""
    todo = iter(images)
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    while True:
        for name, reader in itertools.islice(todo, AHEAD - len(waiting)):
            waiting.append((name, threads.submit(reader)))
        if not waiting:
            return
        yield waiting.popleft()
