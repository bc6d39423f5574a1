"""A callback that measures what the inner step size should be, says it, and sets it where that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from metalearn.checks import MOST_OF_A_TASK, MOST_STEPS, check_flag, check_whole
from metalearn.errors import CheckpointError, ConfigError, on_one_line
from metalearn.modules.problem_based.core import BilevelCore
from metalearn.reports.outcome import Fact, Picture, RunRecord, Stage
from metalearn.theory.advice import StepAdvice, advise_steps, check_advisable
from metalearn.theory.gathering import take_tasks
from metalearn.theory.set_sizes import match_sizes
from metalearn.theory.solver_advice import SolverAdvice, advise_solvers
from metalearn.theory.step_picture import draw_step_sizes

__all__ = ["StepSizeAdvisor", "check_advisor"]

Advice = StepAdvice | SolverAdvice


def check_advisor(module: Any, apply: bool) -> None:
    """Raise unless a module can be advised, and its step sizes set where that is asked for.

    Raises:
        ConfigError: it takes no plain gradient steps; or a bilevel problem's are to be set.
    """
    if not isinstance(module, BilevelCore):
        check_advisable(module)
    elif apply:
        raise ConfigError(
            f"apply is True, but the solvers of {type(module).__name__} are frozen with its algorithm; use apply=False, on the "
            "command line --advise true, and make an algorithm with what is advised"
        )


class StepSizeAdvisor(L.Callback):
    """Measures the curvature of inner problems while a module trains, and advises on step sizes by it.

    At the start and after every so many outer steps it takes some tasks of the batch. It says ``alpha L N`` and the rule of thumb
    for ``inner_lr`` of :func:`~metalearn.theory.advise_steps`. Beside them stand two facts: ``1/(8 N L)`` ends the range in
    which the convergence of multi-step MAML is proved, and ``2/L`` bounds the steps that are stable on a quadratic
    (arXiv 2108.00330). It warns once, in one line, if the support loss rises along the inner path, or if steps are more than
    ten times too small.

    It logs ``advice/alpha_L_N``, ``advice/L``, ``advice/along``, ``advice/inner_lr`` and ``advice/suggested_inner_lr``. On
    several ranks all take what the first one has measured.

    Of a bilevel problem it says what :func:`~metalearn.theory.advise_solvers` does: the stable range of the inner and linear
    solvers, and the steps to a tolerance. It warns once, if a step size is outside that range, or the inner loss not convex.

    Args:
        every: outer steps between two measurements.
        tasks: how many tasks of the batch are measured. The cost grows with it: four cost about two training steps on 16.
        apply: whether the suggestion is set at the start, and again where the support loss rises along the path. Numbers, lists,
            mappings and learned sizes are multiplied by one factor.
        iterations: the most Hessian-vector products for ``L``.

    Attributes:
        series: what was measured, in the order of outer steps.
        applied: the factor by which step sizes were multiplied so far.

    Raises:
        ConfigError: an argument is out of range; or, as training starts, the module cannot be advised.

    Example:
        >>> from lightning import Trainer
        >>> from metalearn import StepSizeAdvisor
        >>> advisor = StepSizeAdvisor(every=50, apply=True)
        >>> trainer = Trainer(callbacks=[advisor], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> advisor.series, advisor.applied  # before trainer.fit(module, data)
        ([], 1.0)
    """

    def __init__(self, every: int = 100, tasks: int = 4, apply: bool = False, iterations: int = 10) -> None:
        check_whole("every", every, 1, MOST_STEPS)
        check_whole("tasks", tasks, 1, MOST_OF_A_TASK)
        check_whole("iterations", iterations, 1, MOST_STEPS)
        check_flag("apply", apply)
        self.every, self.tasks, self.apply, self.iterations = every, tasks, apply, iterations
        self.series: list[Advice] = []
        self.applied = 1.0
        self._sizes: Any = None
        self._warned = False
        self._stage = "fit"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module that cannot be advised, before anything is trained."""
        self._stage = stage
        if stage == "fit":
            check_advisor(pl_module, self.apply)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Where step sizes were set, then or since, give the module those of the weights that are loaded.

        Learned ones are among the weights.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if (state.get("applied", 1.0), self.applied) != (1.0, 1.0):
            match_sizes(pl_module, state.get("inner_lr"))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure, show, warn and apply, where it is time."""
        step = trainer.global_step
        if step % self.every or (self.series and self.series[-1].step == step):
            return
        module: Any = pl_module
        advice = self._measure(trainer, module, batch, step)
        if not self.series:
            rank_zero_info(f"StepSizeAdvisor: {advice}")
        if self.apply and isinstance(advice, StepAdvice) and self._asks_for_change(advice):
            advice = self._set(module, advice)
        elif advice.fault is not None and not self._warned:
            self._warned = True
            rank_zero_info(f"StepSizeAdvisor: warning: {advice.fault} (outer step {step})")
        self.series.append(advice)
        self._sizes = getattr(getattr(module, "step_sizes", None), "inner_lr", None)
        for logger in trainer.loggers:
            logger.log_metrics({f"advice/{name}": value for name, value in advice.as_dict().items()}, step=step)

    def _asks_for_change(self, advice: StepAdvice) -> bool:
        return advice.suggested is not None and not (self.series and advice.descends)

    def _set(self, module: Any, advice: StepAdvice) -> StepAdvice:
        """Set what is advised, and say so; the advice as it is from then on."""
        module.rescale_steps(advice.factor)
        module.step_sizes.rescaled = False  # training goes on with these
        self.applied *= advice.factor
        rank_zero_info(
            f"StepSizeAdvisor: inner_lr {advice.inner_lr:.3g} becomes {advice.suggested:.3g} from outer step {advice.step} on"
        )
        return replace(advice, inner_lr=advice.inner_lr * advice.factor, descends=True)

    def _measure(self, trainer: L.Trainer, module: Any, batch: Any, step: int) -> Advice:
        """The advice, in which all ranks agree."""
        advice: Advice
        if isinstance(module, BilevelCore):
            problem = module.problem_of(batch)
            advice = advise_solvers(
                problem, module.x, module.y, module.algorithm, step=step, iterations=self.iterations
            )
        else:
            advice = advise_steps(module, take_tasks(batch, self.tasks)[0], step, self.iterations)
        if trainer.world_size == 1:
            return advice
        agreed: Advice = trainer.strategy.broadcast(advice)
        return agreed

    def state_dict(self) -> dict[str, Any]:
        """The series and what was applied, in plain types."""
        series = {str(advice.step): vars(advice) for advice in self.series}
        return {"applied": self.applied, "warned": self._warned, "series": series, "inner_lr": self._sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both up again; a test or validation of a checkpoint leaves what training has measured.

        Raises:
            CheckpointError: they are not what an advisor of this version writes.
        """
        if self._stage != "fit":
            return
        try:
            self.applied, self._sizes = float(state_dict["applied"]), state_dict.get("inner_lr")
            self._warned = bool(state_dict["warned"])
            self.series = [
                SolverAdvice(**values) if "mu" in values else StepAdvice(**values)
                for values in state_dict["series"].values()
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                "the checkpoint's callbacks.StepSizeAdvisor is not what an advisor of this version writes "
                f"({on_one_line(error)}); go on from the last.ckpt of a run with --advise, or leave the advisor out"
            ) from error

    def summary_facts(self, stage: Stage) -> list[Fact]:
        """The last measurement as a line of the summary, and the series as data."""
        if stage != "fit" or not self.series:
            return []
        last = self.series[-1]
        data = {
            "advice": [{"step": advice.step, **advice.as_dict()} for advice in self.series],
            "applied": self.applied,
        }
        if isinstance(last, SolverAdvice):
            extra = {"training": {"solvers": data["advice"]}}
            return [Fact("" if number else "solvers", part, extra) for number, part in enumerate(last.parts)]
        text = f"inner_lr {last.inner_lr:.3g}"
        if self.applied != 1:
            text += f", {self.applied:.3g} times what was asked for"
        if last.suggested is not None:
            text += f"; rule of thumb {last.suggested:.2g} at step {last.step}"
        text += f"; alpha L N {last.alpha_L_N:.3g} (convergence is proved up to 0.125)"
        return [Fact("inner step size", text, {"training": {"step_sizes": data}})]

    def pictures(self, run: RunRecord) -> list[Picture]:
        """The series of step sizes beside theory's ranges, once there are two measurements."""
        series = [advice for advice in self.series if isinstance(advice, StepAdvice)]
        if len(series) < 2:
            return []

        def draw(path: Path) -> Path:
            return draw_step_sizes(path, series, run.name)

        return [Picture("step_sizes.png", draw)]
