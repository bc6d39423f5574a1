"""What ``metalearn sweep`` says in the end: the best trials as a table, and the best of them in a summary."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalearn.cli.run_files import format_evaluation
from metalearn.experiments.seeds import choose_measure
from metalearn.experiments.sweep import Outcome
from metalearn.experiments.training import format_measure
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Summary

__all__ = ["SweepReport"]

SHOWN = 10
"""Trials in the table."""


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep; a :class:`~metalearn.reports.summary.Report`.

    Attributes:
        name: of the configuration.
        direction: ``"max"`` or ``"min"`` of the validation measure.
        options: that were tried, by name.
        outcomes: of all trials.
        best: of them.
        files: that were written.
    """

    name: str
    direction: str
    options: Sequence[str]
    outcomes: Sequence[Outcome]
    best: Outcome
    files: Mapping[str, Path]

    @property
    def monitor(self) -> str:
        """The validation measure."""
        return self.best.training.monitor

    @property
    def result(self) -> str:
        """The best validation, and the values that have given it."""
        return self._summarise().result

    def as_dict(self) -> dict[str, Any]:
        """Everything, in the types of JSON."""
        return self._summarise().as_dict()

    def show(self) -> None:
        """Print the table and the summary."""
        console = Console(highlight=False)
        console.print()
        console.print(self._tabulate())
        if len(self.outcomes) > SHOWN:
            console.print(f"  and {len(self.outcomes) - SHOWN} more in trials.csv")
        self._summarise().show()

    def _summarise(self) -> Summary:
        best, test = self.best, self._describe_test()
        values = ", ".join(f"{name} {value}" for name, value in best.values.items())
        measure = format_measure(self.monitor, best.value or 0.0)
        stage, _, name = self.monitor.partition("/")
        better = "higher" if self.direction == "max" else "lower"
        result = {"stage": stage, "measure": name, "better": better, "mean": best.value}
        facts = [
            Fact(f"best {self.monitor}", f"{measure}  with {values}", {"result": result}),
            Fact("trials", self._count()),
            *test,
            Fact("checkpoint", str(best.training.checkpoint)),
            *(Fact(name, str(path)) for name, path in self.files.items()),
        ]
        config = str(self.files["best configuration"])
        commands = [Fact("Train the best again", shlex.join(["metalearn", "fit", "--config", config]))]
        if not test:
            assert best.training.checkpoint is not None
            command = format_evaluation(best.training.checkpoint)
            commands.append(Fact("Test its checkpoint: trials were compared by validation alone", command))
        data = {
            "command": "sweep", "config": self.name, "monitor": self.monitor, "direction": self.direction,
            "best": {**_as_dict(best), "checkpoint": best.training.checkpoint, "test": best.training.tests() or None},
            "trials": [_as_dict(outcome) for outcome in self.outcomes],
            "files": {name.replace(" ", "_"): path for name, path in self.files.items()},
        }  # fmt: skip
        return Summary(f"sweep of {self.name}", facts, commands, data)

    def _describe_test(self) -> list[Fact]:
        """What the best checkpoint has reached in the test, if there has been one."""
        measured = self.best.training.tests()
        name = choose_measure(list(measured), self.monitor)
        if name is None:
            return []
        width = measured.get(f"{name}_ci95", math.nan)
        over = "  (95 % interval over its test tasks)" if math.isfinite(width) else ""
        return [Fact(f"its {name}", f"{format_measure(name, measured[name], width)}{over}")]

    def _tabulate(self) -> Table:
        """The trials, the best first."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for title in ("trial", *self.options):
            table.add_column(Text(title), overflow="fold")
        table.add_column(Text(self.monitor), justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for outcome in self._rank()[:SHOWN]:
            value = "" if outcome.value is None else format_measure(self.monitor, outcome.value)
            values = [_shorten(outcome.values.get(name, "")) for name in self.options]
            state = "" if outcome.state == "complete" else outcome.state
            table.add_row(*map(Text, [outcome.training.home.name.removeprefix("trial_"), *values, value, state]))
        return table

    def _rank(self) -> list[Outcome]:
        """The best first; then those that were not trained to their end, then those without a value."""
        sign = -1 if self.direction == "max" else 1

        def place(outcome: Outcome) -> tuple[bool, bool, float]:
            return outcome.state != "complete", outcome.value is None, sign * (outcome.value or 0.0)

        return sorted(self.outcomes, key=place)

    def _count(self) -> str:
        """Such as ``"9, of which 2 were pruned and 1 has failed"``."""
        states = [outcome.state for outcome in self.outcomes]
        others = [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
        return f"{len(states)} ({', '.join(others)})" if others else str(len(states))


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    training = outcome.training
    return {
        "trial": training.home.name, "state": outcome.state, "value": outcome.value, "set": outcome.values,
        "steps": training.count_steps(), "seconds": training.seconds, "run": training.run,
    }  # fmt: skip


def _shorten(text: str) -> str:
    """A number with as many digits as can be compared; any other text as it is."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
