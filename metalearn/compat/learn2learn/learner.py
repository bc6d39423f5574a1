"""learn2learn's MAML as our LightningModule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from metalearn.compat.learn2learn.package import import_learn2learn
from metalearn.errors import ConfigError
from metalearn.inner import NormPolicy
from metalearn.inner.losses import LossFunction
from metalearn.modules import MAML

if TYPE_CHECKING:
    from learn2learn.algorithms import MAML as Learn2LearnMAML

__all__ = ["from_learn2learn"]

OuterOptimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]


def from_learn2learn(
    learner: Learn2LearnMAML,
    *,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    loss: LossFunction = "cross_entropy",
    norm: NormPolicy = "transductive",
    outer_optimizer: OuterOptimizer = lambda params: torch.optim.Adam(params, lr=1e-3),
) -> MAML:
    """Take over a learner of learn2learn: a copy of its network, its ``lr`` as ``inner_lr``, and its ``first_order``.

    With ``inner_steps`` calls of ``adapt`` on the support loss, the meta-gradient of the query loss is the same. The learner
    itself stays as it is, and the two share no tensor.

    Args:
        learner: a ``learn2learn.algorithms.MAML``, or a clone of one, adapted or not.
        inner_steps: adaptation steps in training; learn2learn leaves them to its user's loop.
        eval_inner_steps: steps in evaluation; ``None`` for ``inner_steps``.
        loss: as in :class:`~metalearn.modules.MAML`.
        norm: as in :class:`~metalearn.modules.MAML`; ``"transductive"`` is what a learn2learn network does in ``train()``.
        outer_optimizer: as in :class:`~metalearn.modules.MAML`.

    Raises:
        ConfigError: ``learner`` is something else, or has what our MAML lacks; learn2learn is missing.

    Example:
        >>> import learn2learn as l2l
        >>> import torch
        >>> from metalearn.compat.learn2learn import from_learn2learn
        >>> learner = l2l.algorithms.MAML(torch.nn.Linear(8, 5), lr=0.1, first_order=True)
        >>> module = from_learn2learn(learner, inner_steps=3)
        >>> module.hparams["inner_lr"], module.hparams["first_order"]
        (0.1, True)
    """
    algorithms = import_learn2learn().algorithms
    if isinstance(learner, algorithms.MetaSGD):
        raise ConfigError(
            "learner is a MetaSGD, but its step sizes, one per element, have no counterpart here; take over its network with "
            "metalearn.MAML(learner.module, inner_lr='learn'), which learns one per parameter tensor"
        )
    if not isinstance(learner, algorithms.MAML):
        raise ConfigError(
            f"learner is a {type(learner).__name__}, but it must be a learn2learn.algorithms.MAML; for a plain network use "
            "metalearn.MAML"
        )
    if isinstance(learner.lr, bool) or not isinstance(learner.lr, (int, float)):
        raise ConfigError(
            f"learner.lr is a {type(learner.lr).__name__}, but only a plain number can be taken over; set learner.lr to a "
            "float first"
        )
    return MAML(
        _copy_network(learner.module),
        inner_steps=inner_steps,
        inner_lr=learner.lr,
        first_order=learner.first_order,
        eval_inner_steps=eval_inner_steps,
        loss=loss,
        norm=norm,
        outer_optimizer=outer_optimizer,
    )


def _copy_network(network: nn.Module) -> nn.Module:
    """A copy whose parameters are leaves: those of a clone are not, and ``deepcopy`` alone refuses them."""
    copies: dict[int, Any] = {
        id(value): nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        for value in network.parameters()
    }
    copies.update((id(value), value.detach().clone()) for value in network.buffers())
    return copy.deepcopy(network, copies)
