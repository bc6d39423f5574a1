"""Regression tasks that share a linear representation, on which heads of one and of two layers adapt."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.episode import Batch, Episode
from metalearn.modules import ANIL, MetaModule
from metalearn.studies.methods import DECAY
from metalearn.theory import hessian_spectrum

__all__ = ["draw_tasks", "half_squares", "make_anil", "make_network", "smoothness_of_head"]

INPUTS, FEATURES, HIDDEN, EXAMPLES = 20, 4, 8, 25
NOISE = 0.1


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """``1/2 (o - y)^2``, the mean over examples."""
    return 0.5 * (outputs - targets).square().mean()


def draw_tasks(seed: int, tasks: int, number: int = 0) -> Episode:
    """Draw tasks ``y = x B w + noise``, each with a ``w`` of its own, in float64.

    Args:
        seed: of ``B`` ``[20, 4]``, which all tasks of the seed share.
        tasks: how many.
        number: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared = torch.linalg.qr(normal(INPUTS, FEATURES))[0]
    generator.manual_seed(hash_numbers(seed, number))
    weights = normal(tasks, FEATURES, 1)
    sets = []
    for _ in range(2):
        x = normal(tasks, EXAMPLES, INPUTS)
        sets.append(Batch(x, x @ shared @ weights + NOISE * normal(tasks, EXAMPLES, 1)))
    return Episode(*sets)


def hash_numbers(seed: int, number: int) -> int:
    """A seed for a draw of a seed."""
    return int(np.random.SeedSequence([seed, number % 2**32]).generate_state(1)[0])


def make_network(layers: int, seed: int) -> nn.Module:
    """Return a linear body with orthonormal columns, and a head of one layer, or of two with a tanh between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Linear(INPUTS, FEATURES, bias=False, dtype=torch.float64)
        nn.init.orthogonal_(body.weight)
        head: nn.Module = nn.Linear(FEATURES, 1, bias=False, dtype=torch.float64)
        if layers == 2:
            first, second = (nn.Linear(*size, dtype=torch.float64) for size in ((FEATURES, HIDDEN), (HIDDEN, 1)))
            head = nn.Sequential(first, nn.Tanh(), second)
    return nn.Sequential(OrderedDict(body=body, head=head))


def make_anil(network: nn.Module, inner_steps: int, inner_lr: float) -> ANIL:
    """Return ANIL, whose inner loss is strongly convex where the head is linear."""
    return ANIL(network, inner_steps=inner_steps, inner_lr=inner_lr, loss=half_squares, task="regression",
                inner_weight_decay=DECAY)  # fmt: skip


def smoothness_of_head(module: MetaModule, loss: Any, support: Batch) -> float:
    """The largest curvature of the support loss in the head, over some tasks, with the decay.

    Args:
        module: whose head and body they are.
        loss: of outputs and targets.
        support: the support sets of ``B`` tasks, ``x [B, n, ...]`` and ``y [B, n, ...]``.
    """
    network: Any = copy.deepcopy(module.backbone)  # its batch normalisation may keep statistics
    with torch.no_grad():
        features = torch.stack([network.body(x) for x in support.x])
    tasks = len(features)
    head = {name: value.detach().expand(tasks, *value.shape) for name, value in network.head.named_parameters()}

    def of_task(params: dict[str, Tensor], features: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = loss(torch.func.functional_call(network.head, params, (features,)), targets)
        return value

    def losses(params: dict[str, Tensor]) -> Tensor:
        return torch.func.vmap(of_task)(params, features, support.y)

    return float(hessian_spectrum(losses, head, tasks=tasks).largest.max()) + DECAY
