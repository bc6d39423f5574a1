"""The pictures of one run, of which none can cost the summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["Gallery"]


class Gallery:
    """Draws pictures into a folder, and tells which are there.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn: list[Path] = []
        self._failed: list[str] = []

    def add(self, name: str, draw: Callable[[Path], Path | None]) -> None:
        """Draw a picture.

        Args:
            name: of its file.
            draw: draws into the file and returns it; ``None`` where the data have no such picture. Whatever it raises is told in
                the summary: the run's numbers are worth more than its pictures.
        """
        try:
            path = draw(self._folder / name)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            self._failed.append(f"{name} could not be drawn ({type(error).__name__}: {reason})")
        else:
            self._drawn += [] if path is None else [path]

    def facts(self) -> list[tuple[str, str]]:
        """Lines of the summary: the files, and what could not be drawn."""
        drawn = [("" if number else "pictures", str(path)) for number, path in enumerate(self._drawn)]
        return drawn + [("no picture", text) for text in self._failed]
