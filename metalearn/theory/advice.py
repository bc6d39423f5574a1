"""Which inner step size a module's tasks ask for: what theory says of it, and a rule of thumb that training bears out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.bilevel.trees import Layout
from metalearn.errors import ConfigError, DivergenceError
from metalearn.inner import SGD
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.opened import OpenLoop
from metalearn.theory.curvature import lanczos, linearize
from metalearn.theory.maml import maml_inner_step
from metalearn.theory.quadratics import inner_step_limit

__all__ = ["StepAdvice", "advise_steps", "check_advisable"]

HALVINGS = 24
"""How often the step size is divided by the square root of 2, at most, until the support loss falls along the whole path."""
SLACK = 0.02
"""A step may raise the mean support loss by this share of the first one: near its minimum it wavers."""
MOST_INNER_STEPS = 50


@dataclass(frozen=True)
class StepAdvice:
    """What was measured about the inner step size, and what is advised.

    Where step sizes differ between tensors or steps, ``inner_lr`` is the mean of the first step, and ``L`` is the largest
    absolute eigenvalue of ``D^(1/2) H D^(1/2) / inner_lr``, with ``D`` the step sizes.

    Attributes:
        step: the outer step.
        inner_lr: the inner step size ``alpha`` in use.
        inner_steps: the inner steps ``N`` in use.
        L: the smoothness of the support loss at the initial weights, the mean over tasks.
        along: the curvature ``d'Hd / d'd`` along the first inner step ``d``.
        suggested: the step size of the rule of thumb; ``None`` where the support loss has no curvature.
        descends: whether the mean support loss falls along the inner path as it is.

    Example:
        >>> from metalearn.theory import StepAdvice
        >>> advice = StepAdvice(step=0, inner_lr=0.5, inner_steps=2, L=4.0, along=1.0, suggested=2.0, descends=True)
        >>> advice.alpha_L_N, advice.guaranteed, advice.stable
        (4.0, 0.015625, 0.5)
    """

    step: int
    inner_lr: float
    inner_steps: int
    L: float
    along: float
    suggested: float | None
    descends: bool

    @property
    def alpha_L_N(self) -> float:
        """``alpha L N``, which theory holds to at most 1/8."""
        return self.inner_lr * self.L * self.inner_steps

    @property
    def guaranteed(self) -> float:
        """``1/(8 N L)``: up to here the convergence of multi-step MAML is proved. It is far below what trains best."""
        return maml_inner_step(L=self.L, steps=self.inner_steps) if self.L > 0 else math.inf

    @property
    def stable(self) -> float:
        """``2/L``: above it a step can raise a quadratic loss of this smoothness, in the direction of its largest curvature."""
        return inner_step_limit(L=self.L) if self.L > 0 else math.inf

    @property
    def factor(self) -> float:
        """What the step sizes in use would be multiplied by; 1 where nothing is suggested."""
        return 1.0 if self.suggested is None else self.suggested / self.inner_lr

    @property
    def suggested_steps(self) -> int:
        """The inner steps that go as far at the step size in use, up to 50."""
        return max(1, min(MOST_INNER_STEPS, round(self.inner_steps * max(self.factor, 1.0))))

    @property
    def fault(self) -> str | None:
        """What is wrong with the step size in use, and the remedy, in one line; ``None`` for nothing."""
        if self.suggested is None:
            return None
        use = f"use inner_lr={self.suggested:.2g}"
        if not self.descends:
            return f"inner_lr is {self.inner_lr:.3g}, at which the support loss rises along the inner path; {use}"
        if self.factor > 10:
            steps = "" if self.suggested_steps == self.inner_steps else f", or inner_steps={self.suggested_steps}"
            return f"inner_lr is {self.inner_lr:.3g}, at which tasks are hardly learned, far below its useful range; {use}{steps}"
        return None

    def __str__(self) -> str:
        """One line: what is measured, what theory says, and what is advised."""
        measured = f"inner_lr {self.inner_lr:.3g} x L {self.L:.3g} x {self.inner_steps} steps = {self.alpha_L_N:.3g}"
        theory = (
            f"theory: at most 0.125 for its guarantee (inner_lr {self.guaranteed:.2g}), stable below {self.stable:.2g}"
        )
        rule = (
            "no curvature to advise by" if self.suggested is None else f"rule of thumb: inner_lr {self.suggested:.2g}"
        )
        return f"{measured}; {theory}; {rule}"

    def as_dict(self) -> dict[str, float]:
        """The values to log, without their prefix."""
        values = {"alpha_L_N": self.alpha_L_N, "L": self.L, "inner_lr": self.inner_lr, "along": self.along}
        return values if self.suggested is None else {**values, "suggested_inner_lr": self.suggested}


def check_advisable(module: Any) -> None:
    """Raise unless a module takes plain gradient steps of sizes that can be set.

    Raises:
        ConfigError: it does not.
    """
    kind = type(module).__name__
    remedy = "leave the advisor out, or use MAML with inner_optimizer='sgd', or ANIL with head_solver='gradient'"
    if not isinstance(module, MetaModule):
        raise ConfigError(
            f"StepSizeAdvisor got a {kind}, but it advises on the inner steps of an episodic module; {remedy}"
        )
    if module.step_sizes is None:
        raise ConfigError(f"StepSizeAdvisor got {kind}, but that takes no inner steps of given sizes; {remedy}")
    rule = getattr(module.adaptation.method.stepwise, "rule", None)
    if not isinstance(rule, SGD):
        raise ConfigError(
            f"inner_optimizer is {module.options.inner_optimizer!r}, but StepSizeAdvisor knows plain "
            f"gradient steps alone; {remedy}"
        )


def advise_steps(module: MetaModule, batch: Any, step: int = 0, iterations: int = 10, seed: int = 0) -> StepAdvice:
    """Measure what the inner step size of a module should be, on some tasks; the module is left as it is.

    The rule of thumb is ``d'd / (N d'Hd)``, with ``d`` the first of ``N`` inner steps of training. ``N`` times that is the
    minimum of a quadratic model of the support loss along ``d``; that steps shrink as ``1/N`` is what theory asks for. It is
    divided by the square root of 2 until the mean support loss falls along all steps of training and of evaluation. This is
    no theorem.

    Args:
        module: takes plain gradient steps.
        batch: an episode, or a list of tasks, on the module's device.
        step: the outer step, to be written down.
        iterations: the most Hessian-vector products for ``L``.
        seed: of the start of these iterations.

    Raises:
        BilevelError: an operation has no second derivative.
        ConfigError: the module takes no plain gradient steps.
        DivergenceError: a gradient is not finite.
    """
    check_advisable(module)
    parts = module.visit_inner_loops(batch, lambda loop: _measure(loop, iterations, seed))
    size, L, down, bend, steps = torch.cat(parts).mean(0).tolist()
    if not math.isfinite(size + L + down + bend):
        raise DivergenceError(
            f"the support loss is not finite at outer step {step}, but step sizes are advised by it; check the "
            "weights and the data"
        )
    most = max(module.inner_steps, module.eval_inner_steps)
    advised = None
    if L > 0 and size > 0 and down > 0:
        advised = _shrink(module, batch, (down / bend if bend > 0 else 1 / L) / steps, most)
    return StepAdvice(
        step, size, round(steps), L / size if size > 0 else 0.0, bend / down / size if down > 0 else 0.0,
        None if advised is None else advised * size, _descends(module, batch, 1.0, most),
    )  # fmt: skip


def _measure(loop: OpenLoop, iterations: int, seed: int) -> Tensor:
    """For each task: the mean step size, ``|D^(1/2) H D^(1/2)|``, ``g'Dg``, ``g'DHDg`` and the number of steps, ``[b, 5]``."""
    start = next(iter(loop.iterates()))
    layout = Layout.of(start, "the tensors that adapt", loop.tasks)
    here = linearize(lambda point: loop.slope(point, 0), start, layout)
    sizes = layout.ravel({name: torch.as_tensor(loop.settings[0][name]).to(value).expand_as(value).detach()
                          for name, value in start.items()})  # fmt: skip
    root = sizes.abs().sqrt()
    ends = lanczos(lambda v: root * here.hvp(root * v), here.y, iterations, 0.05, seed + loop.first)
    slope = here.residual
    along = sizes * slope
    down, bend = (slope * along).sum(-1), (along * here.hvp(along)).sum(-1)
    columns = [sizes.abs().mean(-1), ends.magnitude.to(sizes), down, bend, torch.full_like(down, loop.steps)]
    return torch.stack([column.reshape(-1).double().cpu() for column in columns], -1)


def _shrink(module: MetaModule, batch: Any, factor: float, steps: int) -> float:
    """The factor, divided by the square root of 2 as long as the support loss rises on the path."""
    for _ in range(HALVINGS):
        if _descends(module, batch, factor, steps):
            break
        factor /= math.sqrt(2)
    return factor


def _descends(module: MetaModule, batch: Any, factor: float, steps: int) -> bool:
    """Whether the mean support loss falls with each of so many inner steps, if step sizes are multiplied by ``factor``."""

    def walk(loop: OpenLoop) -> Tensor:
        points = list(replace(loop.rescaled(factor), steps=steps).iterates())
        with torch.no_grad():
            losses = [loop.support_loss(point, step).reshape(-1) for step, point in enumerate(points)]
        return torch.stack(losses, -1).double().cpu()

    losses = torch.cat(module.visit_inner_loops(batch, walk)).mean(0)
    rises = losses.diff() > SLACK * losses[0].abs()
    return bool(losses.isfinite().all()) and not bool(rises.any())
