"""Whether the policy ``"support"`` keeps what it promises: that no prediction depends on the other queries."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.ambient import own_kernels
from metalearn.inner.learner import Learner
from metalearn.inner.losses import HALVES
from metalearn.inner.network.structure import Mode

__all__ = ["check_independence"]


@torch.no_grad()
def check_independence(learner: Learner, support: Tensor, query: Tensor, mode: Mode) -> None:
    """Predict the first of the queries ``[m, ...]`` beside the others, and beside copies of itself.

    Args:
        learner: of the policy ``"support"``.
        support: examples ``[n, ...]`` of the same task.
        query: ``[m, ...]``.
        mode: of the network's layers.

    Raises:
        ConfigError: the two predictions differ.
    """
    if len(query) < 2:
        return
    first, drawn = _predict_first(learner, support, query, mode)
    second, drawn_again = _predict_first(learner, support, query[:1].expand_as(query), mode)
    if not torch.equal(drawn, drawn_again) or not bool(first.isfinite().all()):
        return
    difference = float((second - first).abs().max())
    if difference > (0.1 if first.dtype in HALVES else 1e-3) * float(first.abs().max()):
        raise ConfigError(
            f"norm is 'support', so that no prediction depends on other queries, but that of the backbone "
            f"{type(learner.backbone).__name__} does, by {difference:.1e}: something in it besides batch normalisation joins "
            "examples, or it splits them; use norm='transductive', or take that out"
        )


def _predict_first(learner: Learner, support: Tensor, query: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """The outputs for the first query, and the state of the random generator afterwards."""
    device = support.device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        learner.structure.undisturbed(),
        own_kernels(),
        learner.as_given().running(mode) as running,
    ):
        torch.manual_seed(0)
        params = running.outer()
        outputs = running.query_logits(params, *running.encode(params, support, query))
        return outputs[0], torch.get_rng_state()
