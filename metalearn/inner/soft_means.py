"""Class means that move to the queries that are nearest to them: soft k-means (Ren et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.head import FeatureLearner, HeadLearner
from metalearn.inner.learner import Learner
from metalearn.inner.network.structure import Mode
from metalearn.inner.norm.task_norm import TaskNorm
from metalearn.inner.rules import Params
from metalearn.inner.unit_features import UnitFeatureLearner

__all__ = ["EVAL_REFINEMENTS_TEXT", "REFINEMENTS_TEXT", "SoftMeansLearner", "check_company", "move_means"]

REFINEMENTS_TEXT = (
    "how often the queries of a task, all together, move the class means (soft k-means, Ren et al. 2018); 0 for never."
)
EVAL_REFINEMENTS_TEXT = "how often they do in validation, test and prediction; ``None`` for ``refinements``."


class SoftMeansLearner(HeadLearner):
    """As :class:`HeadLearner` for a head of class means, which the queries of a task move in rounds, all of them together.

    It does so under the policy ``"transductive"`` alone: under others the answer to a query does not depend on its company. A
    single query is answered as under ``"support"``, and so are those of ``independent()``.

    Args:
        rounds: how many, in training.
        eval_rounds: how many in evaluation.
        scale: what squared distances are multiplied by, before their softmax says how much of a query belongs to a class.
        unit: whether features are divided by their norm.

    Example:
        >>> import torch
        >>> from metalearn import MLP
        >>> from metalearn.inner import TaskNorm
        >>> from metalearn.inner.soft_means import SoftMeansLearner
        >>> network = MLP(outputs=5, inputs=8)
        >>> norm = TaskNorm(network, "transductive")
        >>> learner = SoftMeansLearner(network, norm, "head", rounds=0, eval_rounds=3, scale=1.0, needed_by="this example")
        >>> learner.needs_many_queries
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        norm: TaskNorm,
        head: str,
        needed_by: str | None = None,
        *,
        rounds: int,
        eval_rounds: int,
        scale: float,
        unit: bool = False,
    ) -> None:
        super().__init__(backbone, norm, head, needed_by)
        self._rounds, self._eval_rounds, self._scale, self._unit = rounds, eval_rounds, scale, unit
        self.by_support = "moves no class means by itself" if eval_rounds else None

    @property
    def needs_many_queries(self) -> bool:
        return super().needs_many_queries or (self.norm == "transductive" and self._eval_rounds > 0)

    def specialised(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        alone = super().specialised(params, x, mode)
        return _SoftMeans(alone) if isinstance(alone, FeatureLearner) else alone


class _SoftMeans(SoftMeansLearner, UnitFeatureLearner):
    """What runs the head alone."""

    def __init__(self, alone: FeatureLearner) -> None:
        UnitFeatureLearner.__init__(self, alone)

    def specialised(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        return self

    def query_logits(self, params: Params, support: Tensor, query: Tensor, step: int = 0) -> Tensor:
        """Outputs ``[n, N]`` for encoded queries; class means are there, and move, from the first step on."""
        rounds = self._eval_rounds if self._evaluates else self._rounds
        if step == 0 or rounds == 0 or self.norm != "transductive":
            return super().query_logits(params, support, query, step)
        inner = {own: name for name, own in self._inner.items()}
        weight, bias = (params[inner[name]] for name in ("weight", "bias"))
        with torch.autocast(query.device.type, enabled=False):
            return move_means(weight, bias, support.to(weight), query.to(weight), rounds, self._scale)

    def _features(self, params: Params, x: Tensor) -> Tensor:
        return super()._features(params, x) if self._unit else FeatureLearner._features(self, params, x)


def move_means(weight: Tensor, bias: Tensor, support: Tensor, query: Tensor, rounds: int, scale: float) -> Tensor:
    """Outputs ``-scale |z - c_k|^2`` for class means that queries have moved, up to a term that all classes share.

    In each round a query ``z_j`` belongs to class ``k`` by ``p_jk``, the softmax of its outputs, and the mean becomes
    ``(K m_k + sum_j p_jk z_j) / (K + sum_j p_jk)``. There ``m_k`` is the mean of the support examples, and ``K`` is how many of
    them a class has on average. That is equation 5 of Ren et al. 2018, for classes of as many examples each.

    Args:
        weight: ``[N, F]`` of the head that :func:`~metalearn.inner.solvers.prototypes.fit_prototypes` has made with this scale.
        bias: ``[N]`` of it; very low for classes without examples, whose means stay.
        support: features ``[n, F]``.
        query: features ``[m, F]``.
        rounds: how often the means move.
        scale: what squared distances are multiplied by.

    Returns:
        outputs ``[m, N]`` after the last round.
    """
    middle = support.mean(0)
    z, start = query - middle, weight / (2 * scale)
    absent = (bias < torch.finfo(bias.dtype).min / 8).to(bias.dtype)
    count = len(support) / (len(bias) - absent.sum())

    def answer(means: Tensor) -> Tensor:
        outputs = scale * (2 * z @ means.T - means.square().sum(1))
        return outputs + absent * (torch.finfo(bias.dtype).min / 4)

    means = start
    for _ in range(rounds):
        belongs = answer(means).softmax(1)
        means = (count * start + belongs.T @ z) / (count + belongs.sum(0).unsqueeze(1))
    return answer(means)


def check_company(rounds: int, norm: str, name: str = "refinements") -> None:
    """Raise unless queries may be judged together where class means move.

    Args:
        rounds: how often they do.
        norm: the policy of batch normalisation.
        name: of the argument that says how often.

    Raises:
        ConfigError: the policy says that a query is answered alike in any company.
    """
    if rounds and norm != "transductive":
        raise ConfigError(
            f"{name} is {rounds}, but with norm={norm!r} the answer to a query does not depend on the others; use "
            f"norm='transductive', or {name}=0"
        )
