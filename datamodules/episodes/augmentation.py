"""Augmentation of training images, each by itself, on the device that the batch is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.datamodules.episodes.randomness import checksum_tasks
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.episode import Batch
from metalearn.errors import ConfigError

__all__ = ["HOOKS", "augment_tasks", "seed_tasks"]

HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer")
"""Where Lightning has seeds chosen and images augmented."""


def seed_tasks(batch: Any) -> list[int]:
    """A seed for each task of a batch, a checksum of its own support images."""
    if isinstance(batch, list):
        return [seed for task in batch for seed in seed_tasks(task)]
    return checksum_tasks(batch[0].x)


def augment_tasks(batch: Any, transforms: Sequence[nn.Module], seeds: Sequence[int], spec: ImageSpec) -> Any:
    """Transform every image of a batch by itself.

    The transforms see pixels in 0..1, whatever the normalisation, and draw from torch's generators, which are seeded for every
    task and put back.

    Args:
        batch: an episode, or a list of them.
        transforms: modules ``[C, H, W] -> [C, H', W']``.
        seeds: one for each task.
        spec: how the images are normalised.

    Raises:
        ConfigError: the transformed images differ in shape.
    """
    if isinstance(batch, list):
        return [augment_tasks(task, transforms, [seed], spec) for task, seed in zip(batch, seeds, strict=True)]
    devices = [batch[0].x.device] if batch[0].x.is_cuda else []
    images: list[list[Tensor]] = [[] for _ in batch]
    with torch.random.fork_rng(devices):
        for task, seed in enumerate(seeds):
            torch.manual_seed(seed)
            for role, stack in zip(batch, images, strict=True):
                stack.append(_transform(role.x[task], transforms, spec))
    return type(batch)(*(Batch(torch.stack(stack), role.y) for role, stack in zip(batch, images, strict=True)))


def _transform(x: Tensor, transforms: Sequence[nn.Module], spec: ImageSpec) -> Tensor:
    mean, std = (torch.tensor(list(values), device=x.device).view(-1, 1, 1) for values in (spec.mean, spec.std))
    done = []
    for image in (x * std + mean).clamp(0.0, 1.0):
        for transform in transforms:
            image = transform(image)
        done.append(image)
    shapes = {tuple(image.shape) for image in done}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise ConfigError(
            f"augment gives images of the shapes {list(first)} and {list(second)}, but all must have one; use transforms with a "
            "fixed size, such as torchvision.transforms.v2.RandomCrop(84, padding=8)"
        )
    return (torch.stack(done) - mean) / std
