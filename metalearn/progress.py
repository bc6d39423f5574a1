"""How far long work is: a bar with the time left on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

__all__ = ["EVERY", "Progress", "follow", "format_seconds"]

EVERY = 10.0
"""Seconds between two lines where the output is no terminal."""
T = TypeVar("T")


class Progress:
    """Shows on standard output how much of some work is done, and how long the rest will take.

    Args:
        title: what is done, such as ``"packing Omniglot"``.
        total: how many parts there are; they need not be whole.

    Example:
        >>> from metalearn.progress import Progress
        >>> with Progress("counting", 3) as progress:
        ...     for _ in range(3):
        ...         progress.advance()
    """

    def __init__(self, title: str, total: float) -> None:
        self._title, self._total, self._done = title, total, 0.0
        self._begun = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        from rich.console import Console  # where there is long work, not where a package is imported
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._begun = self._last = time.monotonic()
        console = Console(highlight=False)
        if console.is_terminal or console.is_jupyter:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
                       TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
            # long parts are fewer than rich's half minute, by which it would judge their speed
            self._bar = Bar(*columns, console=console, transient=True, speed_estimate_period=1e9)
            self._task = self._bar.add_task(self._title, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def describe(self, title: str) -> None:
        """Say what is done now."""
        self._title = title
        if self._bar is not None:
            self._bar.update(self._task, description=title)

    def advance(self, count: float = 1.0) -> None:
        """Take note of parts that are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif self._done < self._total and time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            left = (self._last - self._begun) * (self._total / self._done - 1) if self._done else None
            rest = "" if left is None else f", {format_seconds(left)} left"
            print(f"{self._title}: {100 * self._done / self._total:.0f} % done{rest}", flush=True)


def follow(parts: Sequence[T], title: str) -> Iterator[T]:
    """Go through parts, and show how many of them are done.

    Example:
        >>> from metalearn.progress import follow
        >>> sum(follow([1, 2, 3], "adding"))
        6
    """
    with Progress(title, len(parts)) as progress:
        for part in parts:
            yield part
            progress.advance()


def format_seconds(seconds: float) -> str:
    """A time as it is read: ``"8 s"``, ``"3:07"`` or ``"2:03:07"``.

    Example:
        >>> from metalearn.progress import format_seconds
        >>> format_seconds(187)
        '3:07'
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
