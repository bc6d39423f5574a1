"""The pictures of one run, of which none can cost the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from metalearn.reports.outcome import Facts, Picture

__all__ = ["Gallery"]


class Gallery:
    """Draws pictures into a folder, and tells which are there.

    Whatever a picture raises is told in the summary: the numbers of a run are worth more than its pictures.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draw(self, make: Callable[[], Iterable[Picture]]) -> Facts:
        """Draw pictures.

        Args:
            make: gives them.

        Returns:
            lines of the summary: the files, and what could not be drawn.
        """
        drawn: list[Path] = []
        failures: list[str] = []
        try:
            pictures = list(make())
        except Exception as error:
            pictures = []
            failures.append(f"none could be drawn ({_describe(error)})")
        for picture in pictures:
            try:
                path = picture.draw(self._folder / picture.name)
            except Exception as error:
                failures.append(f"{picture.name} could not be drawn ({_describe(error)})")
            else:
                drawn += [] if path is None else [path]
        files = [("" if number else "pictures", str(path)) for number, path in enumerate(drawn)]
        return files + [("no picture", failure) for failure in failures]


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
