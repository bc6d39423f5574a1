"""Gradient steps whose sizes and decays a small network generates at every step (ALFA, Baik et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.inner.adaptation import Adaptation, InnerMethod, Settings
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.learner import Learner
from metalearn.inner.rules import Params
from metalearn.inner.solvers.base import TaskSolver
from metalearn.inner.support_gradient import StepwiseMethod, SupportGradient, as_leaves

__all__ = ["GeneratedMethod", "GeneratedSteps"]


@dataclass(frozen=True)
class GeneratedMethod(StepwiseMethod):
    """``w_{j+1} = b_j w_j - a_j grad L(w_j)``, where each tensor has its own ``a_j`` and ``b_j``.

    ``(a_j / a_0j, b_j / b_0j) = 1 + MLP(t_j)``, and ``t_j`` holds the mean of the gradient and of the weights of each tensor.

    Attributes:
        gradient: takes ``grad L``.
        names: of the tensors, in the order in which the network of the rates knows them. Those that do not move count as 0.
    """

    gradient: SupportGradient
    names: tuple[str, ...]

    def iterates(
        self,
        adaptation: Adaptation,
        params: Params,
        support: Tensor,
        targets: Tensor,
        steps: int,
        settings: Settings,
        order: int,
    ) -> Iterator[Params]:
        """Yield ``w_0, w_1, ..., w_steps``; ``settings`` hold ``a_0j``, ``b_0j`` and the tensors of the MLP."""
        adapted, others = adaptation.start(params, len(support))
        if order == 0:
            adapted = as_leaves(adapted)
        yield adapted
        axes = 1 if adaptation.stacked else 0
        for step in range(steps):
            setting = settings[min(step, len(settings) - 1)]
            grads = self.gradient.take(adaptation, adapted, others, support, targets, step, order, setting)
            rates, decays = self._generate(adapted, grads, setting, axes)
            moved = {}
            for index, name in enumerate(self.names):
                if name in adapted:
                    shape = (-1, *(1,) * (adapted[name].ndim - 1)) if axes else ()
                    rate, decay = rates[..., index].reshape(shape), decays[..., index].reshape(shape)
                    moved[name] = decay * adapted[name] - rate * grads[name]
            adapted = as_leaves(moved) if order == 0 else moved
            yield adapted

    def _generate(
        self, adapted: Params, grads: Params, setting: Mapping[str, Tensor | float], axes: int
    ) -> tuple[Tensor, Tensor]:
        """The rates and the decays of all tensors, ``[..., L]`` each."""
        like = next(iter(adapted.values()))
        nothing = like.new_zeros(like.shape[:axes])
        means = [
            values[name].flatten(axes).mean(-1) if name in adapted else nothing
            for values in (grads, adapted)
            for name in self.names
        ]
        tensors = {name: torch.as_tensor(value).to(like.dtype) for name, value in setting.items()}
        with torch.autocast(like.device.type, enabled=False):
            hidden = F.linear(torch.stack(means, -1), tensors["first_weight"], tensors["first_bias"]).relu()
            factors = 1 + F.linear(hidden, tensors["last_weight"], tensors["last_bias"])
        rates, decays = factors.chunk(2, -1)
        return rates * tensors["rates"], decays * tensors["decays"]


class GeneratedSteps(TaskSolver):
    """Takes gradient steps by :class:`GeneratedMethod`, and owns the network that generates their sizes.

    Args:
        options: ``inner_lr``, a number, is where the sizes start.
        learner: says which tensors adapt.

    Attributes:
        rates: ``a_0j`` of every step and tensor, ``[steps, L]``.
        decays: ``b_0j`` of every step and tensor, ``[steps, L]``, from 1.
        generator: the MLP, whose last layer starts at 0: the first steps are plain ones.

    Example:
        >>> from metalearn import ALFA, MLP
        >>> module = ALFA(MLP(hidden=[8]), loss="mse", inner_steps=2, inner_lr=0.01)
        >>> [(name, list(value.shape)) for name, value in module.solver.named_parameters()][:2]
        [('rates', [2, 4]), ('decays', [2, 4])]
    """

    def __init__(self, options: InnerLoop, learner: Learner) -> None:
        super().__init__()
        self._gradient = SupportGradient(options.memory, options.support_chunk)
        self._start = options.inner_steps, float(options.inner_lr)  # type: ignore[arg-type]
        self._names: tuple[str, ...] = ()
        self.follow(learner.able())

    def method(self) -> InnerMethod:
        return GeneratedMethod(self._gradient, self._names)

    def warn_of_steps(self, taken: int) -> str | None:
        """More of them than are trained take the last one's sizes again, which led to chance on Omniglot."""
        trained = len(self.rates)
        if taken <= trained:
            return None
        return (
            f"step sizes and decays are learned for {trained} inner steps, but evaluation takes {taken}, and accuracy may fall "
            f"to chance; use eval_inner_steps={trained}"
        )

    def settings(self, tensors: Params) -> Settings:
        """What generates the sizes of each step."""
        first, _, last = self.generator
        shared = {
            "first_weight": first.weight, "first_bias": first.bias, "last_weight": last.weight, "last_bias": last.bias,
        }  # fmt: skip
        pairs = zip(self.rates.unbind(), self.decays.unbind(), strict=True)
        return [{"rates": rates, "decays": decays, **shared} for rates, decays in pairs]  # type: ignore[dict-item]

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin anew where the tensors that may adapt have other names: the means of others say something else."""
        if tuple(tensors) == self._names:
            return
        self._names = tuple(tensors)
        (steps, rate), count = self._start, len(tensors)
        like = next(iter(tensors.values()))
        self.rates = nn.Parameter(torch.full((steps, count), rate, device=like.device))
        self.decays = nn.Parameter(torch.ones(steps, count, device=like.device))
        self.generator = nn.Sequential(nn.Linear(2 * count, 2 * count), nn.ReLU(), nn.Linear(2 * count, 2 * count))
        self.generator.to(like.device)
        for value in self.generator[2].parameters():
            nn.init.zeros_(value)
