"""Trainings that differ in some options, chosen by Optuna: every combination of listed values, or TPE in ranges.

Optuna's study lives in this process alone. The trainings are processes of their own, whose validations are read from their
``metrics.csv``, so nothing is shared between processes but files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from metalearn.experiments.parallel import Ended, Job, Processes
from metalearn.experiments.space import Choices, Setting, list_combinations
from metalearn.experiments.training import Training, format_measure

__all__ = ["Outcome", "Sweep"]

JOURNAL = "optuna.journal"
NAME = "sweep"
HOME = "home"
"""The attribute of a trial that names its folder, which is that of an earlier one where it goes on."""
STARTUP = 5
"""Trials that end before any is compared with them."""


@dataclass(frozen=True)
class Outcome:
    """What has come of one trial.

    Attributes:
        training: in its folder.
        values: of the options, as the command line takes them.
        state: ``"complete"``, ``"pruned"``, ``"failed"`` or ``"running"``.
        value: the best validation; ``None`` where there is none.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.sweep import Outcome
        >>> from metalearn.experiments.training import Training
        >>> training = Training("trial 0", Path("runs/mine/trial_0"), [], "val/acc", max_steps=100)
        >>> Outcome(training, {"model.inner_lr": "0.1"}, "complete", 0.97).value
        0.97
    """

    training: Training
    values: dict[str, str]
    state: str
    value: float | None


class Sweep:
    """The trials of a sweep, kept in its folder by Optuna's journal.

    Args:
        folder: of the sweep; it exists.
        settings: what is tried.
        make_training: gives the training in a folder of that name, with these values of the options.
        direction: ``"max"`` or ``"min"`` of the validation measure.
        warmup: outer steps before which no training is pruned; ``None`` for no pruning at all.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.space import read_settings
        >>> from metalearn.experiments.sweep import Sweep
        >>> from metalearn.experiments.training import Training
        >>> folder = Path("sweep")
        >>> folder.mkdir()
        >>> def make_training(name, values):
        ...     options = [f"--{option}={value}" for option, value in values.items()]
        ...     return Training(name, folder / name, options, "val/acc", max_steps=100)
        >>> settings = read_settings(["model.inner_lr=0.1,0.4"])
        >>> sweep = Sweep(folder, settings, make_training, direction="max", warmup=None)
        >>> [str(setting) for setting in sweep.settings]
        ['0.1,0.4']
    """

    def __init__(
        self,
        folder: Path,
        settings: Sequence[Setting],
        make_training: Callable[[str, dict[str, str]], Training],
        direction: str,
        warmup: int | None,
    ) -> None:
        self.settings, self.direction = settings, direction
        self._make_training = make_training
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self._pruner = optuna.pruners.NopPruner() if warmup is None else optuna.pruners.MedianPruner(STARTUP, warmup)
        self._study = optuna.create_study(
            storage=storage, study_name=NAME, load_if_exists=True, pruner=self._pruner,
            direction="maximize" if direction == "max" else "minimize",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # another seed whenever it goes on, or the first draws would be drawn again
            self._study.sampler = optuna.samplers.TPESampler(seed=len(self._study.trials), constant_liar=True)
        self._trials: dict[str, optuna.trial.Trial] = {}
        self._running: dict[str, Training] = {}
        self._seen: dict[str, set[int]] = {}
        self._pruned: set[str] = set()

    def enqueue(self, trials: int) -> int:
        """Line up what is to run: what was cut short or has failed again, then what is new.

        Args:
            trials: how many there are to be in all, of ranges.

        Returns:
            how many trials there are in all.
        """
        for home, trial in self._latest().items():
            if trial.state in (TrialState.RUNNING, TrialState.FAIL):
                if trial.state == TrialState.RUNNING:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                self._study.enqueue_trial(trial.params, user_attrs={HOME: home})
        combinations = list_combinations(self.settings)
        for number, values in enumerate(combinations or []):
            self._study.enqueue_trial(dict(values), user_attrs={HOME: f"trial_{number}"}, skip_if_exists=True)
        return len(combinations) if combinations is not None else max(trials, len(self._latest()))

    def count_done(self) -> int:
        """The trials that have ended well or were pruned."""
        return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in self._latest().values())

    def run(self, processes: Processes, total: int) -> int:
        """Run what is not done until there are ``total`` trials; returns how many have failed."""
        return processes.run(self._jobs(total), self._end, self._goes_on)

    def outcomes(self) -> list[Outcome]:
        """What has come of every trial that was started, in the order of their first start."""
        return [self._describe(home, trial) for home, trial in self._latest().items() if trial.params]

    def best(self) -> Outcome | None:
        """The trial with the best validation among those that were trained to their end."""
        complete = [outcome for outcome in self.outcomes() if outcome.state == "complete" and outcome.value is not None]
        choose = max if self.direction == "max" else min
        return choose(complete, key=lambda outcome: outcome.value or 0.0, default=None)

    def _jobs(self, total: int) -> Iterator[Job]:
        while self._count(TrialState.WAITING) or len(self._latest()) < total:
            distributions = {setting.name: _distribute(setting) for setting in self.settings}
            trial = self._study.ask(distributions)
            if HOME not in trial.user_attrs:
                trial.set_user_attr(HOME, f"trial_{len(self._latest()) - 1}")
            home = str(trial.user_attrs[HOME])
            training = self._make_training(home, self._values(trial.params))
            self._trials[training.name], self._running[training.name] = trial, training
            self._seen[training.name] = set()
            yield training.job()

    def _goes_on(self, job: Job) -> bool:
        """Report new validations to Optuna; ``False`` where its pruner has seen enough."""
        if self._report(job.name) and self._trials[job.name].should_prune():
            self._pruned.add(job.name)
            return False
        return True

    def _report(self, name: str) -> bool:
        """Report the validations since the last time; whether there were any."""
        seen = self._seen[name]
        fresh = {step: value for step, value in self._running[name].validations().items() if step not in seen}
        for step, value in sorted(fresh.items()):
            seen.add(step)
            self._trials[name].report(value, step)
        return bool(fresh)

    def _end(self, ended: Ended) -> str:
        """Tell Optuna how a trial has ended."""
        name = ended.job.name
        trial, training = self._trials[name], self._running[name]
        training.keep(ended)
        self._report(name)  # later trials are compared with all of them
        value = self._find_best(training)
        if ended.stopped and name not in self._pruned:
            return f"{name}: stopped at step {training.count_steps()}"  # it goes on with the next command
        if ended.stopped:
            self._study.tell(trial, state=TrialState.PRUNED)
            return f"{name}: pruned at step {training.count_steps()}, {self._format(training, value)}; {self._show(trial.params)}"
        if ended.failed or value is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return f"{name}: failed, since no validation gave a number; {self._show(trial.params)}"
        self._study.tell(trial, value)
        return f"{name}: {self._format(training, value)}, {training.seconds:.0f} s; {self._show(trial.params)}"

    def _latest(self) -> dict[str, FrozenTrial]:
        """Of every folder the last trial that has used it."""
        latest: dict[str, FrozenTrial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            latest[str(trial.user_attrs.get(HOME, f"trial_{len(latest)}"))] = trial
        return latest

    def _count(self, state: TrialState) -> int:
        return len(self._study.get_trials(deepcopy=False, states=(state,)))

    def _describe(self, home: str, trial: FrozenTrial) -> Outcome:
        values = self._values(trial.params)
        training = self._make_training(home, values)
        state = {TrialState.FAIL: "failed", TrialState.COMPLETE: "complete"}.get(trial.state, trial.state.name.lower())
        return Outcome(training, values, state, self._find_best(training))

    def _find_best(self, training: Training) -> float | None:
        values = [value for value in training.validations().values() if math.isfinite(value)]
        return (max if self.direction == "max" else min)(values, default=None)

    def _values(self, params: dict[str, Any]) -> dict[str, str]:
        return {
            setting.name: setting.format(params[setting.name]) for setting in self.settings if setting.name in params
        }

    def _show(self, params: dict[str, Any]) -> str:
        return ", ".join(f"{name.rpartition('.')[2]} {_shorten(text)}" for name, text in self._values(params).items())

    def _format(self, training: Training, value: float | None) -> str:
        return f"{training.monitor} {'unknown' if value is None else format_measure(training.monitor, value)}"


def _distribute(setting: Setting) -> BaseDistribution:
    if isinstance(setting, Choices):
        return CategoricalDistribution(setting.texts)
    if setting.is_whole:
        return IntDistribution(int(setting.low), int(setting.high), log=setting.is_log)
    return FloatDistribution(setting.low, setting.high, log=setting.is_log)


def _shorten(text: str) -> str:
    """A number with as many digits as can be compared; any other text as it is."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
