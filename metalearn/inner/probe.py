"""Is the vectorised execution exact for this network? A float64 comparison beats any list of known layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution import Schedule, sequential, vectorized
from metalearn.inner.learner import Learner

__all__ = ["TOLERANCE", "find_inexactness"]

TOLERANCE = 1e-9
"""The largest relative difference of a tensor's meta-gradient that counts as exact in float64."""


def find_inexactness(
    adaptation: Adaptation,
    rebuild: Callable[[nn.Module], Learner],
    episode: Episode,
    schedule: Schedule,
) -> str | None:
    """Compare the two executions on noise of the episode's shape, in float64, on a copy of the network.

    Args:
        adaptation: the inner loop whose learner holds the network in question.
        rebuild: makes the same learner over a copy of the network.
        episode: gives shapes, dtypes and the range of labels; its values are not used.
        schedule: its order and number of steps (at most 2 are run).

    Returns:
        ``None`` if the meta-gradients agree to :data:`TOLERANCE`, else one line that says where they do not.
    """
    backbone = copy.deepcopy(adaptation.learner.backbone).double()
    for layer in backbone.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()  # its masks are random in both executions; everything else is compared
    noise = _noise_like(episode)
    learner = rebuild(backbone)
    params = learner.outer()
    sizes = [{name: _double(size[name]) for name in size} for size in schedule.step_sizes]
    schedule = Schedule(min(schedule.steps, 2), sizes, schedule.order)
    grads = []
    with torch.random.fork_rng(_devices(episode)), torch.autocast(episode.support.x.device.type, enabled=False):
        for execution in (sequential, vectorized):
            try:
                result = execution(replace(adaptation, learner=learner, stacked=False), params, [], noise, schedule)
                grads.append(torch.autograd.grad(result.loss, list(params.values()), materialize_grads=True))
            except RuntimeError as error:  # what torch.func raises for an operator that it cannot batch
                if execution is sequential:
                    raise
                return f"an operator cannot be batched ({str(error).strip().splitlines()[0][:160]})"
    # a tensor whose gradient vanishes, such as a bias before batch normalisation, holds rounding noise alone
    floor = 1e-6 * max(float(exact.norm()) for exact in grads[0])
    for name, exact, found in zip(params, *grads, strict=True):
        scale = max(float(exact.norm()), floor)
        error_ = float((exact - found).norm()) / scale
        if not error_ <= TOLERANCE:
            return f"the meta-gradient of {name} differs by {error_:.1e} relative in float64"
    return None


def _noise_like(episode: Episode) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def noise(batch: Batch) -> Batch:
        x, y = batch.x[:2], batch.y[:2]
        fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return Batch(fresh if x.is_floating_point() else x, y.double() if y.is_floating_point() else y)

    return Episode(noise(episode.support), noise(episode.query))


def _double(size: Tensor | float) -> Tensor | float:
    return size.detach().double() if isinstance(size, Tensor) else size


def _devices(episode: Episode) -> list[torch.device]:
    device = episode.support.x.device
    return [device] if device.type == "cuda" else []
