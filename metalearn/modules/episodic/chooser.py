"""The choice of a way to run the inner loop, made once and kept as long as the network's layers stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from metalearn.episode import Episode
from metalearn.inner import Adaptation, Learner, Schedule
from metalearn.inner.backbones import check_backbone
from metalearn.inner.execution.choice import Choice
from metalearn.inner.execution.choose import choose_execution
from metalearn.inner.execution.independence import check_independence
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.network.structure import Mode
from metalearn.inner.reach import check_reach
from metalearn.inner.twice import check_twice_differentiable

__all__ = ["Chooser"]


class Chooser:
    """Chooses how the inner loop is run, once for training and once for evaluation, and anew when the network changes.

    Args:
        name: of the module, which begins what is said.

    Attributes:
        of_training: the choice for training; ``None`` before its first step.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._choices: dict[Any, Choice] = {}
        self.of_training: Choice | None = None

    def find(self, learner: Learner, outer: tuple[str, ...], evaluating: bool) -> Choice | None:
        """The choice that was made for a network as it is now; ``None`` if there is none.

        Args:
            learner: in the form that is used for this network.
            outer: the names of the tensors that are differentiated.
            evaluating: whether it is the choice for evaluation.
        """
        learner.structure.refresh()
        choice = self._choices.get(_key(learner, outer, evaluating))
        if choice is not None and not evaluating:
            self.of_training = choice
        return choice

    def choose(
        self,
        adaptation: Adaptation,
        learner: Learner,
        outer: tuple[str, ...],
        episode: Episode,
        options: InnerLoop,
        schedule: Schedule,
    ) -> Choice:
        """Choose the way of running.

        Args:
            adaptation: the inner loop as noise is to try it.
            learner: see :meth:`find`.
            outer: see :meth:`find`.
            episode: ``B`` tasks.
            options: say what was asked for.
            schedule: of the steps to come; order 0 is an evaluation.
        """
        evaluating = schedule.order == 0
        version = learner.structure.version
        self._choices = {other: choice for other, choice in self._choices.items() if other[0] == version}
        self._check(adaptation.learner, learner, episode, "evaluating" if evaluating else "as_it_is")
        tried = replace(adaptation, learner=learner)
        if schedule.order == 2 and adaptation.method.loss_order == 2:
            with evaluation_gradients():
                check_twice_differentiable(adaptation, *(usable(part[0]) for part in episode.support))
        with evaluation_gradients():
            choice = choose_execution(options.execution, tried, episode, schedule, options.kernels, evaluating)
        self._report(choice)
        self._choices[_key(learner, outer, evaluating)] = choice
        if not evaluating:
            self.of_training = choice
        return choice

    def _check(self, whole: Learner, learner: Learner, episode: Episode, mode: Mode) -> None:
        """Raise where no way is right, and say which trainable tensors no gradient reaches."""
        check_backbone(learner.backbone)
        with evaluation_gradients():
            sets = [usable(x) for role in (episode.support.x, episode.query.x) for x in role[:2]]
            missed = check_reach(whole, sets, mode)
            if learner.norm == "support":
                check_independence(learner, usable(episode.support.x[0]), usable(episode.query.x[0]), mode)
        if missed:
            rank_zero_info(f"{self._name}: no gradient reaches {', '.join(missed[:6])}, which are trainable")

    def _report(self, choice: Choice) -> None:
        """Say what was chosen, unless another choice that is alike was reported."""
        if any(choice.is_like(other) for other in self._choices.values()):
            return
        for line in choice.describe():
            rank_zero_info(f"{self._name}: {line}")


def _key(learner: Learner, outer: tuple[str, ...], evaluating: bool) -> tuple[Any, ...]:
    return learner.structure.version, evaluating, type(learner), outer
