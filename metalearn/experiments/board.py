"""What is shown while processes run side by side: a table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metalearn.progress import format_seconds

__all__ = ["Board", "Row"]

EVERY = 60.0
"""Seconds between two lines of progress where the output is no terminal."""


@dataclass(frozen=True)
class Row:
    """A process that runs.

    Attributes:
        name: of the job.
        share: how much of it is done, from 0 to 1; ``None`` where that is not known.
        text: where it stands.
        seconds: how long it runs.
        left: seconds until it ends; ``None`` where that is not known.

    Example:
        >>> from metalearn.experiments.board import Row
        >>> Row("seed 3", share=0.5, text="step 100 of 200", seconds=60.0, left=60.0).name
        'seed 3'
    """

    name: str
    share: float | None
    text: str
    seconds: float
    left: float | None


class Board:
    """Shows what runs, and says what has ended.

    Args:
        title: what all the jobs are.
        total: how many there are.
        done: how many of them were done before.

    Example:
        >>> from metalearn.experiments.board import Board
        >>> with Board("seeds of mine", total=1) as board:
        ...     board.end("seed 0: 97.31 %", seconds=60.0)
        seed 0: 97.31 %
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done, self._failed = title, total, done, 0
        self._console = Console(highlight=False)
        self._live: Any = None
        self._last = time.monotonic()
        self._ended: list[float] = []

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def end(self, line: str, seconds: float, failed: bool = False) -> None:
        """Count a job that has ended after so many seconds, and say how."""
        self._ended.append(seconds)
        self._done += 1
        self._failed += failed
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(line), soft_wrap=True)

    def show(self, rows: Sequence[Row]) -> None:
        """Show where the running jobs are."""
        if self._live is not None:
            self._live.update(self._table(rows), refresh=True)
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            running = "; ".join(f"{row.name}: {row.text}" for row in rows)
            self.say(f"{self._head(rows)} | {running}")

    def _head(self, rows: Sequence[Row]) -> str:
        """Such as ``"seeds of maml: 3 of 9 done, 1 failed, about 4 min left"``."""
        failed = f", {self._failed} failed" if self._failed else ""
        left = self._left(rows)
        return f"{self._title}: {self._done} of {self._total} done{failed}" + (
            f", about {format_seconds(left)} left" if left is not None else ""
        )

    def _left(self, rows: Sequence[Row]) -> float | None:
        """Seconds until all is done, if those that wait take as long as the others do."""
        lefts = [row.left for row in rows if row.left is not None]
        if not rows or len(lefts) < len(rows):
            return None
        whole = [*self._ended, *(row.seconds + left for row, left in zip(rows, lefts, strict=True))]
        waiting = max(self._total - self._done - len(rows), 0)
        return max(*lefts, (sum(lefts) + waiting * sum(whole) / len(whole)) / len(rows))

    def _table(self, rows: Sequence[Row]) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for row in rows:
            bar = "" if row.share is None else _bar(row.share)
            left = "" if row.left is None else f"{format_seconds(row.left)} left"
            table.add_row(Text(row.name), Text(bar, style="green"), Text(row.text), Text(left, style="dim"))
        outer = Table.grid(expand=True)
        outer.add_column(no_wrap=True, overflow="ellipsis")
        outer.add_row(Text(self._head(rows), style="bold"))
        outer.add_row(table)
        return outer


def _bar(share: float, width: int = 16) -> str:
    full = round(max(0.0, min(share, 1.0)) * width)
    return "━" * full + "─" * (width - full)
