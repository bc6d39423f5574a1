"""``metalearn compare A B``: the paired difference of runs on the same test tasks, their curves, and how they were configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalearn.cli.config_files import read_config
from metalearn.cli.light_parser import LightParser
from metalearn.errors import ConfigError
from metalearn.experiments.comparison import Difference, Scores, compare_pairs, list_changes, read_scores
from metalearn.experiments.curves import read_curves
from metalearn.experiments.folder import Run, find_run
from metalearn.reports.summary import as_plain
from metalearn.reports.tables import write_csv
from metalearn.reports.text import escape_unprintable

__all__ = ["Comparison", "run"]

NO_TERMINAL = 10_000


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: the first one is what the others are compared with.
        scores: on the test tasks that they share; ``None`` where there are none.
        changes: the options in which they differ, with the value in each.
        files: what was written, by what it is.
    """

    runs: Sequence[Run]
    scores: Scores | None
    changes: list[tuple[str, list[str]]]
    files: dict[str, Path]

    @property
    def differences(self) -> list[Difference]:
        """Of every run but the first."""
        values = self.scores.values if self.scores is not None else []
        return [compare_pairs(values[0], other) for other in values[1:]]

    @property
    def result(self) -> str:
        """A line for every difference."""
        if self.scores is None:
            return "\n".join(
                f"{entry.name}: {entry.result.text if entry.result else 'no result'}" for entry in self.runs
            )
        names = [entry.name for entry in self.runs]
        return "\n".join(
            f"{name} - {names[0]}: {describe_difference(difference, self.scores.measure)}"
            for name, difference in zip(names[1:], self.differences, strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, in the types of JSON."""
        rows: list[dict[str, Any]] = [run.as_dict() for run in self.runs]
        for row, difference in zip(rows[1:], self.differences, strict=False):
            spread = difference.spread
            row["difference"] = {
                "mean": spread.mean, "ci95": spread.ci95, "std": spread.std, "tasks": spread.number,
                "higher": difference.higher, "lower": difference.lower, "from": rows[0]["run"],
            }  # fmt: skip
        plain: dict[str, Any] = as_plain(
            {
                "measure": self.scores.measure if self.scores else None,
                "tasks": len(self.scores.tasks) if self.scores else None,
                "runs": rows,
                "changes": dict(self.changes),
                "files": {name: str(path) for name, path in self.files.items()},
            }
        )
        return plain

    def show(self) -> None:
        """Print the results, the differences of configurations, and the files."""
        console = Console(highlight=False, soft_wrap=False)
        if not console.is_terminal and not console.is_jupyter:
            console.width = NO_TERMINAL
        console.print(self._draw_results())
        console.print(self._explain(), markup=False)
        console.print()
        console.print(self._draw_changes() if self.changes else Text("the configurations are the same"))
        console.print()
        for name, path in self.files.items():
            console.print(f"{name}: {escape_unprintable(str(path))}", markup=False, soft_wrap=True)

    def _explain(self) -> str:
        if self.scores is None:
            return "no test tasks, so no difference with an interval"
        unit = "in points of accuracy, " if self._measure == "accuracy" else ""
        name = escape_unprintable(self.runs[0].name)
        return (
            f"The differences are from {name}, {unit}paired over the {len(self.scores.tasks)} test tasks of all, "
            "with Student's 95 % interval. An interval that holds 0 shows no difference."
        )

    def _draw_results(self) -> Table:
        table = _make_table("run")
        for name in ("steps", "result", "difference", "better on"):
            table.add_column(name, justify="right", no_wrap=True)
        beside = [
            ["", ""],
            *([describe_difference(part, self._measure), self._count(part)] for part in self.differences),
        ]
        beside += [["", ""]] * (len(self.runs) - len(beside))
        for entry, cells in zip(self.runs, beside, strict=True):
            result = entry.result.text if entry.result is not None else ""
            row = [entry.name, "" if entry.steps is None else str(entry.steps), result, *cells]
            table.add_row(*(Text(escape_unprintable(cell)) for cell in row))
        return table

    @property
    def _measure(self) -> str:
        return self.scores.measure if self.scores is not None else ""

    def _count(self, difference: Difference) -> str:
        better = difference.lower if self._measure == "loss" else difference.higher
        return f"{better} of {difference.spread.number}"

    def _draw_changes(self) -> Table:
        table = _make_table("option")
        for entry in self.runs:
            table.add_column(Text(escape_unprintable(entry.name)), overflow="fold")
        for name, values in self.changes:
            table.add_row(*(Text(escape_unprintable(cell)) for cell in (name, *values)))
        return table


def _make_table(first: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    return table


def describe_difference(difference: Difference, measure: str) -> str:
    """Such as ``"+1.25 ± 0.31"`` points of accuracy, or ``"-0.0312 ± 0.0105"`` of a loss."""
    scale, digits = (100, 2) if measure == "accuracy" else (1, 4)
    spread = difference.spread
    return f"{scale * spread.mean:+.{digits}f}" + (f" ± {scale * spread.ci95:.{digits}f}" if spread.number > 1 else "")


def run(args: Sequence[str]) -> Comparison:
    """Compare runs with the first one of them.

    Raises:
        MetalearnError: there is no such run, they were not tested alike, or nothing can be written.
    """
    parser = LightParser(
        "compare",
        "Compare runs with the first one: the paired difference on the same test tasks, the\ncurves of their trainings in one "
        "figure, and the options in which they differ.",
        "  metalearn compare maml_glyphs_5w1s anil_glyphs_5w1s\n"
        "  metalearn compare maml_glyphs_5w1s/version_0 maml_glyphs_5w1s/version_1 --output ab",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its name as metalearn runs lists it")
    parser.add_argument(
        "--output", default="comparison", metavar="DIR", help="the folder to write to; default: comparison"
    )
    options = parser.parse_args(args)
    runs = [find_run(name) for name in options.runs]
    if len(runs) < 2:
        raise ConfigError(f"compare has one run, {runs[0].name}, but it needs two or more; name another")
    names = [entry.folder.resolve() for entry in runs]
    twice = next((entry.name for number, entry in enumerate(runs) if names[number] in names[:number]), None)
    if twice is not None:
        raise ConfigError(f"run {twice} is there twice, but a run does not differ from itself; name another")
    if not options.output.strip():
        raise ConfigError("output is empty, but it must name a folder; write --output DIR, or leave it out")
    configs = [read_config(path) if (path := entry.folder / "config.yaml").is_file() else {} for entry in runs]
    scores = read_scores(runs, configs)
    return Comparison(runs, scores, list_changes(configs), write_files(Path(options.output), runs, scores))


def write_files(output: Path, runs: Sequence[Run], scores: Scores | None) -> dict[str, Path]:
    """Write the table of tasks, and the figure.

    Raises:
        DataError: the folder cannot be written.
    """
    files = {}
    if scores is not None:
        rows = ([task, *values] for task, *values in zip(scores.tasks, *scores.values, strict=True))
        files["table of tasks"] = write_csv(output / "tasks.csv", ["task", *(entry.name for entry in runs)], rows)
    from metalearn.reports.curves_picture import draw_curves  # matplotlib: a wrong name need not wait for it

    picture = draw_curves(output / "curves.png", [(entry.name, read_curves(entry.folder)) for entry in runs])
    return files if picture is None else {**files, "curves": picture}
