"""The pictures of one run, of which none can cost the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from metalearn.reports.outcome import Fact, Picture
from metalearn.reports.own_facts import describe_error

__all__ = ["Gallery"]

OTHER_FILES = (
    "", "..", "checkpoints", "classes.csv", "config.yaml", "labels.csv", "metrics.csv", "predictions.csv", "test_tasks.csv",
)  # fmt: skip
"""Names in a run's folder that are no picture's."""


class Gallery:
    """Draws pictures into a folder, and tells which are there.

    Whatever a picture raises is told in the summary: the numbers of a run are worth more than its pictures.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draw(self, make: Callable[[], Iterable[Picture]]) -> list[Fact]:
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
            failures.append(f"none could be drawn ({describe_error(error)})")
        for picture in pictures:
            try:
                drawn += self._draw(_read_picture(picture))
            except Exception as error:
                name = picture.name if isinstance(picture, Picture) else repr(picture)
                failures.append(f"{name} could not be drawn ({describe_error(error)})")
        files = [
            Fact("" if number else "pictures", str(path), {"pictures": [str(path)]})
            for number, path in enumerate(drawn)
        ]
        return files + [Fact("no picture", failure, {"notes": [failure]}) for failure in failures]

    def _draw(self, picture: Picture) -> list[Path]:
        path = picture.draw(self._folder / picture.name)
        if path is not None and not isinstance(path, (str, Path)):
            raise TypeError(f"draw returned {path!r}, but it must return the path that it has drawn into, or None")
        return [] if path is None else [Path(path)]


def _read_picture(picture: object) -> Picture:
    """A picture whose file is one of its own in the run's folder."""
    if not isinstance(picture, Picture):
        raise TypeError("it must be a Picture(name, draw)")
    if Path(picture.name).name != picture.name or picture.name in OTHER_FILES:
        raise ValueError("its name must be that of a file of its own in the run's folder, such as 'costs.png'")
    return picture
