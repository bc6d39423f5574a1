"""The methods that the studies of theory train on images: their networks, inner problems and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones import Conv4
from metalearn.bilevel import OracleCounts
from metalearn.modules import ANIL, MAML, MetaModule
from metalearn.studies.few_shot_runs import anil_calls
from metalearn.studies.known import count_maml

__all__ = ["METHODS", "Method", "build", "squared_labels"]

HIDDEN = 64
"""Units of the head with two layers."""
DECAY = 0.01
"""The inner weight decay, by which the squared loss of a linear head is strongly convex."""


def squared_labels(outputs: Tensor, labels: Tensor) -> Tensor:
    """``1/2 |o - e_y|^2``, the mean over examples, where ``e_y`` has a 1 at the label."""
    targets = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
    return 0.5 * (outputs - targets).square().sum(-1).mean()


@dataclass(frozen=True)
class Method:
    """A method of the studies.

    Attributes:
        make: builds it for a network, with the inner loop's options.
        count: gives the oracle calls of a number of tasks and of inner steps.
        layers: of the head.
    """

    make: Callable[..., MetaModule]
    count: Callable[[int, int], OracleCounts]
    layers: int = 1


METHODS: dict[str, Method] = {
    "MAML": Method(MAML, count_maml),
    "FOMAML": Method(partial(MAML, first_order=True), partial(count_maml, first_order=True)),
    "ANIL": Method(ANIL, anil_calls),
    "convex": Method(partial(ANIL, loss=squared_labels, inner_weight_decay=DECAY), anil_calls),
    "nonconvex": Method(partial(ANIL, loss=squared_labels, inner_weight_decay=DECAY), anil_calls, layers=2),
}


def build(method: str, network: Mapping[str, Any], seed: int, inner_steps: int, inner_lr: float) -> MetaModule:
    """Build a method with the initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Conv4(**network)
        if METHODS[method].layers == 2:
            features, ways = backbone.head.in_features, backbone.head.out_features
            backbone.head = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, ways))  # type: ignore[assignment]
    return METHODS[method].make(backbone, inner_steps=inner_steps, inner_lr=inner_lr)
