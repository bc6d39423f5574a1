"""Is a way of running the inner loop exact for this network? A float64 comparison beats any list of known layers."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution import Schedule, meta_loss
from metalearn.inner.gradients import MemoryMode
from metalearn.inner.kernels import own_kernels
from metalearn.inner.losses import double_loss
from metalearn.inner.workers import Plan

__all__ = ["TOLERANCE", "Probe"]

TOLERANCE = 1e-9
"""The largest relative difference of a tensor's meta-gradient that counts as exact in float64."""

EXAMPLES = 8
"""Examples of each set that are compared: exactness does not depend on their number."""


class Probe:
    """Compares ways of running the inner loop with the plainest one: task by task, torch's operators, the whole graph kept.

    Runs on noise of the episode's shape, in float64, on a copy of the network.

    Args:
        adaptation: the inner loop whose learner holds the network in question.
        episode: gives shapes, dtypes and the range of labels; its values are not used.
        schedule: its order and number of steps (at most 2 are run).
    """

    def __init__(self, adaptation: Adaptation, episode: Episode, schedule: Schedule) -> None:
        self._network = copy.deepcopy(adaptation.learner.backbone).double()
        for layer in self._network.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.eval()  # its masks are random in both executions; everything else is compared
        learner = adaptation.learner.over(self._network)
        self._adaptation = replace(adaptation, learner=learner, loss=double_loss(adaptation.loss))
        self._episode = _noise_like(episode)
        sizes = [{name: _double(size[name]) for name in size} for size in schedule.step_sizes]
        self._schedule = Schedule(min(schedule.steps, 2), sizes, schedule.order)
        with own_kernels():
            self._exact = self._gradient("store", Plan())

    def find_inexactness(self, memory: MemoryMode, stacked: bool, own_operators: bool = True) -> str | None:
        """Compare one way of running it.

        Args:
            memory: its memory mode.
            stacked: whether tasks are executed together.
            own_operators: whether it uses our operators.

        Returns:
            ``None`` if the meta-gradients agree to :data:`TOLERANCE`, else a clause that says in which layer they do not.
        """
        entered: list[str] = []
        with _entering(self._network, entered), contextlib.ExitStack() as stack:
            if not own_operators:
                stack.enter_context(own_kernels())
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("error", message="There is a performance drop")
            try:
                found = self._gradient(memory, Plan(tasks=len(self._episode.support.x)) if stacked else Plan())
            except (RuntimeError, UserWarning) as error:  # what torch.func raises for an operator it cannot do
                where = f"layer {entered[-1]!r}: " if entered else ""
                if isinstance(error, UserWarning):
                    operator = str(error).partition("rule for ")[2].partition(". ")[0]
                    return f"{where}torch.vmap has no rule for {operator}, and would take tasks one by one"
                return f"{where}{str(error).strip().splitlines()[0][:160]}"
        # a tensor whose gradient vanishes, such as a bias before batch normalisation, holds rounding noise alone
        floor = 1e-6 * max(float(exact.norm()) for exact in self._exact.values()) or 1.0
        for name, exact in self._exact.items():
            error_ = float((exact - found[name]).norm()) / max(float(exact.norm()), floor)
            if not error_ <= TOLERANCE:
                layer = name.rpartition(".")[0] or type(self._network).__name__
                return f"layer {layer!r}: the meta-gradient of {name} differs by {error_:.1e} relative in float64"
        return None

    def _gradient(self, memory: MemoryMode, plan: Plan) -> dict[str, Tensor]:
        params = self._adaptation.outer()
        device = self._episode.support.x.device
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            adaptation = replace(self._adaptation, memory=memory)
            loss = meta_loss(adaptation, params, [], self._episode, self._schedule, plan).loss
            return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


@contextlib.contextmanager
def _entering(network: nn.Module, entered: list[str]) -> Iterator[None]:
    """Keep the names of the layers whose forward pass has begun and not ended, the innermost last."""
    handles = []

    def note(name: str, layer: nn.Module) -> None:
        def enter(*_: Any) -> None:
            entered.append(name)

        def leave(*_: Any) -> None:
            entered.pop()

        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave))

    for name, layer in network.named_modules():
        note(name or type(network).__name__, layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noise_like(episode: Episode) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def noise(batch: Batch) -> Batch:
        x, y = batch.x[:2, :EXAMPLES], batch.y[:2, :EXAMPLES]
        fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return Batch(fresh if x.is_floating_point() else x, y.double() if y.is_floating_point() else y)

    return Episode(noise(episode.support), noise(episode.query))


def _double(size: Tensor | float) -> Tensor | float:
    return size.detach().double() if isinstance(size, Tensor) else size
