"""A linear head that tells the nearest class mean (prototypical networks, Snell et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from metalearn.inner.class_means import average_classes
from metalearn.inner.solvers.solved_head import SupportFeatures, check_labels, mark_absent

__all__ = ["fit_prototypes"]


def fit_prototypes(
    support: SupportFeatures, settings: Mapping[str, Tensor | float], scale: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The head whose outputs are ``-scale |z - c_k|^2`` for the mean ``c_k`` of each class, up to a term that all classes share.

    With ``m`` the mean of all support features, that is ``2 (c_k - m)' z - (c_k - m)'(c_k + m)``, times ``scale``. Taking ``m``
    off changes no probability, and keeps digits. A class without support examples gets a probability of 0.

    Args:
        support: the features and the class labels.
        settings: unused.
        scale: what squared distances are multiplied by.

    Raises:
        ShapeError: targets are no class labels.
    """
    x, y = support.x, support.y
    check_labels(support)
    middle = x.mean(-2, keepdim=True)
    means, counts = average_classes(x, y, support.ways)
    apart = means - middle
    bias = -(apart * (means + middle)).sum(-1)
    return 2 * scale * apart, (scale * bias).where(counts > 0, mark_absent(counts))
