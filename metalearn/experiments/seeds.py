"""The same training from several seeds: what a result owes to chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.experiments.parallel import Ended, Job, Processes
from metalearn.experiments.student import Spread, spread
from metalearn.experiments.training import Training, format_measure
from metalearn.reports.tables import write_csv

__all__ = ["SeedRuns", "choose_measure"]


@dataclass(frozen=True)
class SeedRuns:
    """Trainings that differ in their seed alone.

    Attributes:
        folder: of them all.
        trainings: by seed.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.seeds import SeedRuns
        >>> from metalearn.experiments.training import Training
        >>> home = Path("runs/mine/seed_0")
        >>> training = Training("seed 0", home, ["--seed_everything", "0"], "val/acc", max_steps=100)
        >>> SeedRuns(Path("runs/mine"), {0: training}).finished
        {}
    """

    folder: Path
    trainings: dict[int, Training]

    @property
    def finished(self) -> dict[int, Training]:
        """Those that have ended well."""
        return {seed: training for seed, training in self.trainings.items() if training.finished}

    def run(self, processes: Processes) -> int:
        """Run those that have not ended well; returns how many have failed."""
        by_name = {training.name: training for training in self.trainings.values()}
        jobs: list[Job] = [training.job() for training in self.trainings.values() if not training.finished]

        def end(ended: Ended) -> str:
            training = by_name[ended.job.name]
            training.keep(ended)
            if ended.stopped:
                return f"{training.name}: stopped at step {training.count_steps()}"
            return f"{training.name}: {_describe(training)}, {training.seconds:.0f} s"

        return processes.run(jobs, end)

    def measures(self) -> dict[str, Spread]:
        """How every measure of the test spreads over the seeds, without intervals and inner steps."""
        tests = [training.tests() for training in self.finished.values()]
        names = [name for name in (tests[0] if tests else {}) if _is_measure(name)]
        return {name: spread([test[name] for test in tests if name in test]) for name in names}

    def within(self, name: str) -> float:
        """The mean over seeds of half the width of a run's own 95 % interval; nan where runs have none."""
        widths = [test[f"{name}_ci95"] for test in self._tests() if f"{name}_ci95" in test]
        return math.fsum(widths) / len(widths) if widths else math.nan

    def describe(self, name: str) -> dict[str, float]:
        """Mean, standard deviation and interval of one measure over the seeds, and the interval within a run."""
        mean, std, ci95, number = self.measures()[name]
        return {"mean": mean, "std": std, "ci95": ci95, "seeds": number, "within_ci95": self.within(name)}

    def write(self) -> Path:
        """Write ``seeds.csv``: a row for each seed that has ended well."""
        rows, columns = [], list(dict.fromkeys(name for test in self._tests() for name in test))
        for seed, training in self.finished.items():
            test = training.tests()
            run = str(training.run or "")
            rows.append(
                [seed, training.count_steps(), training.seconds, *(test.get(name, "") for name in columns), run]
            )
        return write_csv(self.folder / "seeds.csv", ["seed", "steps", "seconds", *columns, "run"], rows)

    def as_dict(self) -> dict[str, Any]:
        """The measures over the seeds, and what each seed has come to."""
        measures = {
            name: {**values._asdict(), "within_ci95": self.within(name)} for name, values in self.measures().items()
        }
        seeds = [
            {"seed": seed, "finished": training.finished, "steps": training.count_steps(), "seconds": training.seconds,
             "run": training.run, "test": training.tests()}
            for seed, training in self.trainings.items()
        ]  # fmt: skip
        return {"folder": self.folder, "measures": measures, "seeds": seeds}

    def _tests(self) -> list[dict[str, float]]:
        return [training.tests() for training in self.finished.values()]


def choose_measure(names: Sequence[str], monitor: str) -> str | None:
    """The measure of a test that a result is known by: the monitored one, else the accuracy, else the first."""
    wanted = [monitor.replace("val/", "test/", 1), "test/acc", "test/loss", *names]
    return next((name for name in wanted if name in names), None)


def _describe(training: Training) -> str:
    tests = training.tests()
    name = choose_measure([name for name in tests if _is_measure(name)], training.monitor)
    if name is None:
        return "trained, not tested"
    return f"{name} {format_measure(name, tests[name], tests.get(f'{name}_ci95', math.nan))}"


def _is_measure(name: str) -> bool:
    return name.startswith("test/") and not name.endswith("_ci95") and "_step_" not in name
