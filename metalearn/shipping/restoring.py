"""An adapted model's file and its meta-model put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import CheckpointError
from metalearn.inner.ambient import own_kernels
from metalearn.inner.learner import Learner
from metalearn.inner.norm.moments import Moments
from metalearn.inner.rules import Params
from metalearn.shipping.checksum import find_meta_checksum
from metalearn.shipping.description import Description, damaged
from metalearn.shipping.files import read_adapted
from metalearn.shipping.statistics import name_statistics
from metalearn.shipping.whole import build_learner

__all__ = ["Restored", "restore"]


class Restored(NamedTuple):
    """What an adapted model is made of.

    Attributes:
        params: the tensors of the network, adapted ones and others.
        moments: the statistics of its normalisations.
        support: examples of the right kind, but none of them.
        learner: runs the network as it was run when it was adapted.
    """

    params: Params
    moments: dict[str, Moments]
    support: Tensor
    learner: Learner


def restore(path: str | Path, learner: Learner | None) -> tuple[Restored, Description]:
    """Put the tensors of a file among those of the meta-model that it was adapted from.

    Args:
        path: of the file.
        learner: of the meta-model; ``None`` for a file that holds the whole network.

    Raises:
        CheckpointError: the file is damaged or none of ours, or belongs to another meta-model.
    """
    tensors, saved = read_adapted(path)
    moments = _take_moments(path, tensors, saved)
    whole = learner is None
    learner = build_learner(path, tensors, saved) if learner is None else learner
    base = {**learner.tensors.starts(), **dict(learner.tensors.named()), **learner.outer()}
    device = next(iter(base.values())).device
    moments = {name: (mean.to(device), var.to(device)) for name, (mean, var) in moments.items()}
    if saved.backbone is not None:  # a file that holds the network whole has its buffers too
        own = dict(learner.backbone.named_buffers())
        tensors = {name: value for name, value in tensors.items() if name in base or name not in own}
    _check_shapes(path, tensors, base, saved)
    if not whole:
        _check_meta_model(path, learner, saved)
    able = learner.able()
    still = sorted(name for name, value in tensors.items() if name not in able and value.shape == base[name].shape)
    if still:
        raise damaged(path, f"it has {still[0]}, which does not adapt in this module")
    params = {name: tensors.get(name, value).detach().to(device) for name, value in base.items()}
    support = torch.zeros(0, *saved.shape, dtype=getattr(torch, saved.dtype), device=device)
    examples = _draw_examples(support)
    _try(path, learner, examples)
    other = learner.under(learner.policy)  # what a file makes it learn of its network is not the module's
    return Restored(params, moments, support, other.specialised(other.outer(), examples, "evaluating")), saved


def _check_meta_model(path: str | Path, learner: Learner, saved: Description) -> None:
    checksum = find_meta_checksum(learner)
    if saved.meta_model != checksum:
        raise CheckpointError(
            f"adapted model {path} was adapted from another meta-model, whose checksum is {saved.meta_model[:12]} and not "
            f"{checksum[:12]}; load it with the checkpoint that it was adapted from"
        )


def _take_moments(path: str | Path, tensors: Params, saved: Description) -> dict[str, Moments]:
    """The statistics of normalisations, which are taken out of the file's tensors."""
    pairs = {name: name_statistics(name) for name in saved.normalisations}
    absent = [name for pair in pairs.values() for name in pair if name not in tensors]
    if absent:
        raise damaged(path, f"it lacks {absent[0]}")
    return {name: (tensors.pop(mean), tensors.pop(var)) for name, (mean, var) in pairs.items()}


def _try(path: str | Path, learner: Learner, examples: Tensor) -> None:
    """Raise unless the network takes examples of the shape that the file says."""
    try:
        with torch.no_grad(), learner.running("evaluating") as running, own_kernels():
            running.predict(learner.outer(), examples)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shape = list(examples.shape[1:])
        raise damaged(path, f"its examples are of shape {shape}, which the network does not take") from error


def _draw_examples(like: Tensor) -> Tensor:
    """Two examples to try a network on; zeros where they are no real numbers."""
    if not like.is_floating_point():
        return like.new_zeros(2, *like.shape[1:])
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *like.shape[1:], generator=generator).to(like)


def _check_shapes(path: str | Path, tensors: Params, base: Mapping[str, Tensor], saved: Description) -> None:
    """Raise unless each tensor is as the meta-model's, or a head for as many classes as the task had."""
    for name, value in tensors.items():
        here = base.get(name)
        widened = here is not None and value.shape[1:] == here.shape[1:] and value.ndim == here.ndim > 0
        if here is None or not (value.shape == here.shape or (widened and len(value) == saved.ways)):
            raise CheckpointError(
                f"adapted model {path} is of another architecture: {name} is {list(value.shape)} in it and "
                f"{'absent' if here is None else list(here.shape)} in this module; it was adapted from {saved.algorithm} of "
                f"{saved.network}: load it with that checkpoint"
            )
        if value.dtype != here.dtype:
            raise CheckpointError(
                f"adapted model {path} has {name} as {value.dtype}, but this module has it as {here.dtype}; load it with the "
                "checkpoint that it was adapted from"
            )
