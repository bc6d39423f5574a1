"""Compares ways of running the inner loop with the network as it is given, in float64."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.episode import Episode
from metalearn.errors import first_line
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import answering, own_kernels
from metalearn.inner.execution.meta_loss import evaluate, meta_loss
from metalearn.inner.execution.plan import Plan
from metalearn.inner.execution.probe.failure import check_second_derivative
from metalearn.inner.execution.probe.forward_pass import find_frozen, uses_saved_tensor_hooks
from metalearn.inner.execution.probe.layers import find_written, note_open, note_outputs, read_attributes
from metalearn.inner.execution.probe.noise import make_noise, shorten
from metalearn.inner.execution.probe.undrawn import WithoutDropout
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.execution.way import Way
from metalearn.inner.learner import Learner
from metalearn.inner.losses import double_loss
from metalearn.inner.network.structure import Mode
from metalearn.inner.plain_learner import PlainLearner

__all__ = ["TOLERANCE", "Probe"]

TOLERANCE = 1e-9
"""The largest relative difference of a tensor's meta-gradient that counts as exact in float64."""

FLOOR = 1e-4
"""Of the largest tensor's norm: smaller ones are compared relative to this, since rounding errors are of the largest."""

OUTPUT_FLOOR = 1e-6
"""The least norm that a difference of outputs is relative to."""


class _Outcome(NamedTuple):
    """What a way gives.

    Attributes:
        grads: the meta-gradient by tensor; empty in evaluation.
        logits: the query outputs.
        moved: whether the random generator has moved.
    """

    grads: dict[str, Tensor]
    logits: Tensor
    moved: bool

    @property
    def is_finite(self) -> bool:
        return all(bool(value.isfinite().all()) for value in (self.logits, *self.grads.values()))


class Probe:
    """Compares ways of running the inner loop with the network as it is given.

    That is its own layers, called on one task after another with torch's operators and batch statistics, the whole graph kept.
    All run on noise of the episode's shape, in float64, without dropout.

    Args:
        adaptation: the inner loop whose learner holds the network in question.
        episode: gives shapes, dtypes and the range of labels; its values are not used.
        schedule: its order and number of steps (at most 2 are run); with order 0 outputs after adaptation alone are compared.
        evaluating: whether it is the network in ``eval()``.

    Attributes:
        draws: whether the network draws random numbers beside those of dropout.
        attends: whether it calls torch's fused attention.
        finite: whether what it computes is finite, so that it can be compared.

    Raises:
        ConfigError: the network has no second derivative, and needs one.
        RuntimeError: whatever torch raises for a network that does not run in float64, or not at all.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Batch, Episode
        >>> from metalearn.inner import SGD, Adaptation, GradientSteps, InnerLoop, Learner, Probe, Schedule, TaskNorm, Way
        >>> network = MLP(hidden=[])
        >>> learner = Learner(network, TaskNorm(network, "transductive"))
        >>> solver = GradientSteps(InnerLoop(inner_steps=2, inner_lr=0.1), SGD(), learner)
        >>> adaptation = Adaptation(learner, torch.nn.functional.mse_loss, solver.method())
        >>> x = torch.randn(4, 10, 1)
        >>> schedule = Schedule(steps=2, settings=solver.settings(learner.moving()), order=2)
        >>> probe = Probe(adaptation, Episode(Batch(x, 2 * x), Batch(x, 2 * x)), schedule)
        >>> probe.find_inexactness(Way(stacked=True)) is None  # tasks may be executed together
        True
    """

    def __init__(self, adaptation: Adaptation, episode: Episode, schedule: Schedule, evaluating: bool = False) -> None:
        self._adaptation = replace(adaptation, loss=double_loss(adaptation.loss))
        self._learner = adaptation.learner.in_double()
        self._mode: Mode = "evaluating" if evaluating else "as_it_is"
        self._episode = make_noise(episode)
        self._schedule = shorten(schedule)
        structure, x = self._learner.structure, self._episode.support.x[0]
        structure.checkpoints = uses_saved_tensor_hooks(self._learner, x, self._mode)
        self._undrawn = WithoutDropout(structure.checkpoints)
        structure.frozen = find_frozen(self._learner, x, self._undrawn)
        self._undrawn.forces_batch_statistics = evaluating and not structure.frozen
        self._exact, self.draws = self._run_exactly(evaluating or not self._learner.backbone.training)
        self.finite = self._exact.is_finite
        self.attends = self._undrawn.attends

    def _run_exactly(self, evaluates: bool) -> tuple[_Outcome, bool]:
        """What the network as it is given gives, and whether it draws random numbers; notices whether it keeps its input."""
        structure = self._learner.structure
        structure.keeps_input.pop(evaluates, None)
        needs_features = self._adaptation.method.needs_features
        plain: Learner = self._learner.as_given() if needs_features else PlainLearner(self._learner)
        with own_kernels():
            try:
                outcome = self._run(plain, Way())
                draws = outcome.moved
                if draws:  # in the order of our calls, which may be fewer
                    outcome = self._run(self._learner.as_given(), Way())
            except (RuntimeError, NotImplementedError) as error:
                if self._schedule.order == 2:
                    x = self._episode.support.x[0]
                    check_second_derivative(self._learner, x, self._mode, self._undrawn, error)
                raise
        if not needs_features:
            structure.keeps_input.setdefault(evaluates, True)
        return outcome, draws

    def find_inexactness(self, way: Way, tolerance: float = TOLERANCE) -> str | None:
        """Compare one way of running it.

        Returns:
            ``None`` if outputs and meta-gradients agree to ``tolerance``, else a clause that says in which layer they do not.
        """
        learner = self._learner.as_given() if way.as_given else self._learner
        outcome = self._try(learner, way)
        if isinstance(outcome, str):
            return outcome
        difference = relative_difference(outcome.logits, self._exact.logits, OUTPUT_FLOOR)
        if not difference <= tolerance:
            layer = self._find_first_difference(learner, way)
            return f"layer {layer!r}: outputs differ by {difference:.1e} relative in float64"
        # a tensor whose gradient vanishes, such as a bias before batch normalisation, holds rounding noise alone
        floor = FLOOR * max((float(exact.norm()) for exact in self._exact.grads.values()), default=0.0) or 1.0
        for name, exact in self._exact.grads.items():
            difference = relative_difference(outcome.grads[name], exact, floor)
            if not difference <= tolerance:
                layer = name.rpartition(".")[0] or type(self._learner.backbone).__name__
                return f"layer {layer!r}: the meta-gradient of {name} differs by {difference:.1e} relative in float64"
        return None

    def _try(self, learner: Learner, way: Way) -> _Outcome | str:
        """What one way gives, or a clause that says in which layer it fails or leaves something behind."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(own_kernels(*way.operators))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("error", message="There is a performance drop")
            entered: list[str] = []
            try:
                entered = stack.enter_context(note_open(learner.network))
                before = read_attributes(learner.network)
                outcome = self._run(learner, way)
            except (RuntimeError, TypeError, UserWarning) as error:  # what torch.func raises for what it cannot do
                return _describe_failure(error, entered)
        written = None if way.as_given else find_written(learner.network, before)
        if written is not None:
            return f"layer {written[0]!r}: it keeps something of its forward pass in its attribute {written[1]!r}"
        return outcome

    def _run(self, learner: Learner, way: Way) -> _Outcome:
        """What one way gives with batch statistics."""
        x = self._episode.support.x
        with (
            torch.random.fork_rng([x.device] if x.device.type == "cuda" else []),
            torch.autocast(x.device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            learner.structure.undisturbed(),
            self._undrawn,
            answering(self._undrawn),
            learner.running(self._mode) as running,
        ):
            before = torch.get_rng_state()
            adaptation = replace(self._adaptation, learner=running.with_batch_statistics()).with_memory(way.memory)
            plan = Plan(tasks=len(x)) if way.stacked else Plan()
            grads, logits = self._measure(adaptation, plan)
            return _Outcome(grads, logits, not torch.equal(before, torch.get_rng_state()))

    def _measure(self, adaptation: Adaptation, plan: Plan) -> tuple[dict[str, Tensor], Tensor]:
        """The meta-gradient, if one is wanted, and the query outputs."""
        params = adaptation.outer()
        steps, sizes, order, _ = self._schedule
        if order == 0:
            return {}, evaluate(adaptation, params, self._episode, [steps], sizes, plan).together[steps]
        loss, logits = meta_loss(adaptation, params, [], self._episode, self._schedule, plan)
        grads = torch.autograd.grad(loss, list(params.values()))
        return dict(zip(params, grads, strict=True)), logits

    def _find_first_difference(self, learner: Learner, way: Way) -> str:
        """The first layer in the order of calls whose outputs are others than those of the network as it is given."""
        exact = self._read_outputs(PlainLearner(self._learner), way)
        outputs = dict(reversed(self._read_outputs(learner, way)))
        for name, value in exact:
            if name not in outputs or outputs[name].shape != value.shape:
                continue
            if relative_difference(outputs[name], value, OUTPUT_FLOOR) > TOLERANCE:
                return name
        return type(self._learner.backbone).__name__

    def _read_outputs(self, learner: Learner, way: Way) -> list[tuple[str, Tensor]]:
        """The output of every layer for a query set, in the order of calls."""
        with (
            learner.structure.undisturbed(),
            self._undrawn,
            learner.running(self._mode) as running,
            torch.no_grad(),
            note_outputs(running.network) as outputs,
            own_kernels(*way.operators),
        ):
            params, x = running.outer(), self._episode.query.x[0]
            varied = running.with_batch_statistics()
            varied.query_logits(params, *varied.encode(params, x, x))
        return outputs


def relative_difference(value: Tensor, exact: Tensor, floor: float) -> float:
    """The norm of the difference over that of ``exact``, or over ``floor`` if that is larger."""
    return float((value - exact).norm()) / max(float(exact.norm()), floor)


def _describe_failure(error: Exception, entered: list[str]) -> str:
    """What went wrong in the innermost of the layers that were ``entered``."""
    where = f"layer {entered[-1]!r}: " if entered else ""
    if isinstance(error, UserWarning):
        operator = str(error).partition("rule for ")[2].partition(". ")[0]
        return f"{where}torch.vmap has no rule for {operator}, and would take tasks one by one"
    return where + first_line(error)
