"""The baseline that meta-learning is measured against: the same network trained on all tasks pooled."""

from __future__ import annotations

import torch

from metalearn.episode import Episode
from metalearn.inner import MetaLoss, own_kernels
from metalearn.modules.maml import MAML

__all__ = ["Pooled"]


class Pooled(MAML):
    """Train one network on all examples of all tasks, without adaptation, and evaluate it as MAML does.

    This is the "pretrained" baseline of Finn et al. 2017 for regression. For classification it is at chance by design:
    the labels of an episode mean nothing outside of it.
    """

    def _loss_order(self) -> int:
        return 1

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """The mean loss over all examples, before adaptation, and the query outputs ``[B, n, N]``."""
        support, query = episode
        tasks, n = query.y.shape[:2]
        x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1)
        with self._learner.as_given().running() as learner, own_kernels():
            outputs = learner.support_logits(learner.outer(), x.flatten(0, 1))
        loss = self._narrowed(ways).task_loss({}, outputs, y.flatten(0, 1))
        return MetaLoss(loss, outputs.detach().unflatten(0, (tasks, -1))[:, -n:])
