"""Is a way of running the inner loop exact for this network? A float64 comparison beats any list of known layers."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from metalearn.episode import Batch, Episode
from metalearn.errors import ConfigError
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.meta_loss import MetaLoss, Schedule, evaluate, meta_loss
from metalearn.inner.execution.threads import Plan
from metalearn.inner.kernels import own_kernels
from metalearn.inner.kernels.weight_norm import normalise_weight
from metalearn.inner.learner import Learner, PlainLearner
from metalearn.inner.losses import double_loss
from metalearn.inner.memory import MemoryMode
from metalearn.inner.network.layers import name_layers
from metalearn.inner.network.structure import Mode
from metalearn.inner.norm.task_norm import keeping_everything, transductive

__all__ = ["TOLERANCE", "Probe", "Way"]

TOLERANCE = 1e-9
"""The largest relative difference of a tensor's meta-gradient that counts as exact in float64."""

FLOOR = 1e-4
"""Of the largest tensor's norm: smaller ones are compared relative to this, since rounding errors are of the largest."""

EXAMPLES = 8
"""Examples of each set that are compared: exactness does not depend on their number."""


class Way(NamedTuple):
    """A way of running the inner loop; the defaults are the plainest.

    Attributes:
        stacked: whether tasks are executed together.
        memory: the memory mode.
        own_operators: whether our operators are used.
        as_given: whether the caller's network itself is called, not our copy of its layers.
    """

    stacked: bool = False
    memory: MemoryMode = "store"
    own_operators: bool = False
    as_given: bool = True


class _Found(NamedTuple):
    """The meta-gradient by tensor, and the query outputs."""

    grads: dict[str, Tensor]
    logits: Tensor


class Probe:
    """Compares ways of running the inner loop with the network as it is given: its own layers, called on one task after another
    with torch's operators and batch statistics, the whole graph kept.

    Runs on noise of the episode's shape, in float64, without dropout.

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
    """

    def __init__(self, adaptation: Adaptation, episode: Episode, schedule: Schedule, evaluating: bool = False) -> None:
        self._given = replace(adaptation, loss=double_loss(adaptation.loss))
        self._learner = adaptation.learner.in_double()
        self._mode: Mode = "evaluating" if evaluating else "as_it_is"
        self._episode = _noise_like(episode)
        sizes = [{name: _double(size[name]) for name in size} for size in schedule.step_sizes]
        self._schedule = Schedule(min(schedule.steps, 2), sizes, schedule.order)
        self._learner.structure.checkpoints = self._packs_saved()
        self._undrawn = _Undrawn(self._learner.structure.checkpoints)
        plain: Learner = self._learner.as_given() if adaptation.needs_features else PlainLearner(self._learner)
        self._find_frozen()
        structure = self._learner.structure
        self._undrawn.answers = evaluating and not structure.frozen
        evaluates = evaluating or not self._learner.backbone.training
        structure.keeps_input.pop(evaluates, None)
        with own_kernels():
            try:
                self._exact, self.draws = self._gradient(plain, Way())
                if self.draws:  # in the order of our calls, which may be fewer
                    self._exact, _ = self._gradient(self._learner.as_given(), Way())
            except (RuntimeError, NotImplementedError) as error:
                self._explain(error)
                raise
        self.finite = all(bool(value.isfinite().all()) for value in (self._exact.logits, *self._exact.grads.values()))
        if isinstance(plain, PlainLearner):
            structure.keeps_input.setdefault(evaluates, True)
        self.attends = self._undrawn.attends

    def find_inexactness(self, way: Way, tolerance: float = TOLERANCE) -> str | None:
        """Compare one way of running it.

        Returns:
            ``None`` if outputs and meta-gradients agree to ``tolerance``, else a clause that says in which layer they do not.
        """
        learner = self._learner.as_given() if way.as_given else self._learner
        entered: list[str] = []
        with contextlib.ExitStack() as stack:
            if not way.own_operators:
                stack.enter_context(own_kernels())
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("error", message="There is a performance drop")
            try:
                stack.enter_context(_entering(learner.network, entered))
                before = _attributes(learner.network)
                found, _ = self._gradient(learner, way)
            except (
                RuntimeError,
                TypeError,
                UserWarning,
            ) as error:  # what torch.func raises for an operator it cannot do
                where = f"layer {entered[-1]!r}: " if entered else ""
                if isinstance(error, UserWarning):
                    operator = str(error).partition("rule for ")[2].partition(". ")[0]
                    return f"{where}torch.vmap has no rule for {operator}, and would take tasks one by one"
                return f"{where}{str(error).strip().splitlines()[0][:160]}"
        written = None if way.as_given else _find_written(learner.network, before)
        if written is not None:
            return f"layer {written[0]!r}: it keeps something of its forward pass in its attribute {written[1]!r}"
        difference = _relative(found.logits, self._exact.logits, 1e-6)
        if not difference <= tolerance:
            layer = self._first_difference(learner, way)
            return f"layer {layer!r}: outputs differ by {difference:.1e} relative in float64"
        # a tensor whose gradient vanishes, such as a bias before batch normalisation, holds rounding noise alone
        floor = FLOOR * max((float(exact.norm()) for exact in self._exact.grads.values()), default=0.0) or 1.0
        for name, exact in self._exact.grads.items():
            difference = _relative(found.grads[name], exact, floor)
            if not difference <= tolerance:
                layer = name.rpartition(".")[0] or type(self._learner.backbone).__name__
                return f"layer {layer!r}: the meta-gradient of {name} differs by {difference:.1e} relative in float64"
        return None

    def _gradient(self, learner: Learner, way: Way) -> tuple[_Found, bool]:
        """What one way gives with batch statistics, and whether the random generator has moved."""
        x = self._episode.support.x
        with (
            torch.random.fork_rng([x.device] if x.device.type == "cuda" else []),
            torch.autocast(x.device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            transductive(),
            learner.structure.undisturbed(),
            self._undrawn,
            learner.running(self._mode) as running,
        ):
            before = torch.get_rng_state()
            adaptation = replace(self._given, learner=running.with_batch_statistics(), memory=way.memory)
            params = adaptation.outer()
            plan = Plan(tasks=len(x)) if way.stacked else Plan()
            steps, sizes, order, _ = self._schedule
            if order == 0:
                outputs = evaluate(adaptation, params, self._episode, [steps], sizes, plan)[steps]
                return _Found({}, outputs), not torch.equal(before, torch.get_rng_state())
            found: MetaLoss = meta_loss(adaptation, params, [], self._episode, self._schedule, plan)
            grads = torch.autograd.grad(found.loss, list(params.values()))
            moved = not torch.equal(before, torch.get_rng_state())
        return _Found(dict(zip(params, grads, strict=True)), found.logits), moved

    def _first_difference(self, learner: Learner, way: Way) -> str:
        """The first layer in the order of calls whose outputs are others than those of the network as it is given."""
        seen: list[list[tuple[str, Tensor]]] = []
        for each in (PlainLearner(self._learner), learner):
            with (
                transductive(),
                each.structure.undisturbed(),
                self._undrawn,
                each.running(self._mode) as running,
                torch.no_grad(),
            ):
                calls: list[tuple[str, Tensor]] = []
                with _watching(running.network, calls), own_kernels(*(["conv", "norm"] if way.own_operators else [])):
                    params, x = running.outer(), self._episode.query.x[0]
                    varied = running.with_batch_statistics()
                    encoded, query = varied.encode(params, x, x)
                    varied.query_logits(params, encoded, query)
                seen.append(calls)
        known = dict(reversed(seen[1]))
        for name, output in seen[0]:
            if name in known and known[name].shape == output.shape and _relative(known[name], output, 1e-6) > TOLERANCE:
                return name
        return type(self._learner.backbone).__name__

    def _packs_saved(self) -> bool:
        """Whether a forward pass uses hooks on what is saved for the backward pass."""
        plain = PlainLearner(self._learner)
        refusal = "hooks on saved tensors"
        try:
            with (
                plain.structure.undisturbed(),
                torch.random.fork_rng(),
                plain.running(self._mode) as running,
                torch.enable_grad(),
                torch.autograd.graph.disable_saved_tensors_hooks(refusal),
            ):
                running.support_logits(running.outer(), self._episode.support.x[0])
        except RuntimeError as error:
            return refusal in str(error)
        return False

    def _find_frozen(self) -> None:
        """Find out whether normalisation by ``F.batch_norm`` is frozen in training: evaluation alone would not show it."""
        structure = self._learner.structure
        plain = PlainLearner(self._learner)
        of_others: list[bool] = []

        def note(layer: nn.Module, *_: Any) -> None:
            if not isinstance(layer, _BatchNorm):
                of_others.extend(self._undrawn.calls)
            elif False in self._undrawn.calls:
                frozen.append(type(layer).__name__)
            self._undrawn.calls.clear()

        frozen: list[str] = []
        handles = [
            nn.modules.module.register_module_forward_pre_hook(note), nn.modules.module.register_module_forward_hook(note)
        ]  # fmt: skip
        try:
            with structure.undisturbed(), self._undrawn, plain.running("training") as running, torch.no_grad():
                running.call(running.outer(), self._episode.support.x[0])
        finally:
            for handle in handles:
                handle.remove()
        structure.frozen = bool(frozen) or False in of_others
        if structure.frozen and True in of_others:
            raise ConfigError(
                f"the backbone {type(self._learner.backbone).__name__} calls F.batch_norm with training=False in training too, "
                "and elsewhere with batch statistics, so that nothing tells its calls apart in evaluation; use "
                "torch.nn.BatchNorm layers"
            )

    def _explain(self, error: Exception) -> None:
        """Raise in one line if the reason is an operator that cannot be differentiated twice."""
        found = re.search(r"derivative for (?:aten::|')_?(\w+?)'? is not implemented", str(error))
        if found is None or self._schedule.order != 2:
            return
        operator = found.group(1).removesuffix("_backward")
        where = self._layer_without_second_derivative()
        raise ConfigError(
            f"{where}torch has no second derivative of {operator}, which the second-order meta-gradient needs; use "
            "first_order=True, or another activation in the backbone"
        ) from error

    def _layer_without_second_derivative(self) -> str:
        inputs: list[tuple[str, nn.Module, Tensor]] = []
        names = name_layers(self._learner.backbone)

        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if id(layer) in names and not any(layer.children()) and args and isinstance(args[0], Tensor):
                inputs.append((names[id(layer)], layer, args[0].detach()))

        handle = nn.modules.module.register_module_forward_pre_hook(note)
        try:
            plain = PlainLearner(self._learner)
            with plain.structure.undisturbed(), self._undrawn, plain.running(self._mode) as running, torch.no_grad():
                running.support_logits(running.outer(), self._episode.support.x[0])
        finally:
            handle.remove()
        for name, layer, x in inputs:
            if any(True for _ in layer.parameters()) or not x.is_floating_point():
                continue
            try:
                leaf = x.clone().requires_grad_()
                (first,) = torch.autograd.grad(layer(leaf * 1.0).square().sum(), leaf, create_graph=True)
                torch.autograd.grad(first.square().sum(), leaf, allow_unused=True)
            except RuntimeError:
                return f"layer {name!r}: "
        return ""


class _Undrawn(TorchFunctionMode):
    """Dropout draws nothing and drops nothing: its masks are other ones in every way of running.

    Args:
        checkpoints: whether there is activation checkpointing, which is undone.

    Attributes:
        attends: whether fused attention was called.
        answers: whether ``F.batch_norm`` takes batch statistics whatever it is told.
        calls: whether it was told so, for every call.
    """

    _FUNCTIONS = (
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
        torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
    )  # fmt: skip

    def __init__(self, checkpoints: bool) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self.attends = self.answers = False
        self.calls: list[bool] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._checkpoints:
            with keeping_everything():
                return self._answer(func, args, dict(kwargs or {}))
        return self._answer(func, args, dict(kwargs or {}))

    def _answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in self._FUNCTIONS:
            return args[0] if args else kwargs["input"]
        if func is F.batch_norm:
            self.calls.append(bool(args[5] if len(args) > 5 else kwargs.get("training", False)))
            if self.answers:
                args, kwargs = _put(args, kwargs, 5, "training", True)
        if func is torch._weight_norm:
            return normalise_weight(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.attends = True
            args, kwargs = _put(args, kwargs, 4, "dropout_p", 0.0)
        elif func is F.multi_head_attention_forward:
            self.attends = self.attends or not kwargs.get("need_weights", True)
            args, kwargs = _put(args, kwargs, 10, "dropout_p", 0.0)
        return func(*args, **kwargs)


def _put(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another value for one of them."""
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


@contextlib.contextmanager
def _entering(network: nn.Module, entered: list[str]) -> Iterator[None]:
    """Keep the names of the layers whose forward pass has begun and not ended, the innermost last."""
    names = name_layers(network)

    def enter(layer: nn.Module, _: Any) -> None:
        if id(layer) in names:
            entered.append(names[id(layer)])

    def leave(layer: nn.Module, *_: Any) -> None:
        if id(layer) in names:
            entered.pop()

    # hooks of all modules in the process: none is put on the caller's
    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextlib.contextmanager
def _watching(network: nn.Module, calls: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Keep the output of every layer in the order of calls."""
    names = name_layers(network)

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        if id(layer) in names and isinstance(output, Tensor):
            calls.append((names[id(layer)], output.detach().clone()))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _attributes(network: nn.Module) -> list[dict[str, Any]]:
    return [dict(layer.__dict__) for layer in network.modules()]


def _find_written(network: nn.Module, before: list[dict[str, Any]]) -> tuple[str, str] | None:
    """A layer and its attribute that is not what it was; torch's own layers keep nothing that a caller would read."""
    for (name, layer), state in zip(network.named_modules(), before, strict=True):
        if type(layer).__module__.startswith("torch."):
            continue
        for key, value in layer.__dict__.items():
            if key != "training" and (key not in state or state[key] is not value):
                return name or type(network).__name__, key
    return None


def _relative(found: Tensor, exact: Tensor, floor: float) -> float:
    return float((found - exact).norm()) / max(float(exact.norm()), floor)


def _noise_like(episode: Episode) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def noise(batch: Batch) -> Batch:
        x, y = batch.x[:2, :EXAMPLES], batch.y[:2, :EXAMPLES]
        fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return Batch(fresh if x.is_floating_point() else x, y.double() if y.is_floating_point() else y)

    return Episode(noise(episode.support), noise(episode.query))


def _double(size: Tensor | float) -> Tensor | float:
    return size.detach().double() if isinstance(size, Tensor) else size
