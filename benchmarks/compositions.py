"""Kernels of the inner loop, each beside the composition of torch's operators that it stands for, and images to try them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner import ambient
from metalearn.inner.kernels import Geometry, conv2d, first_block, normalise
from metalearn.inner.kernels.attention import attend
from metalearn.inner.kernels.weight_norm import normalise_weight

__all__ = ["IMAGES", "KERNELS", "RANGES", "Kernel", "Tensors", "edge_filters", "make_images"]

EPS = 1e-5
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kernel:
    """A kernel of ours and its plain composition, both functions of the same tensors.

    Attributes:
        name: as printed.
        channels: of the images.
        ours: the kernel, of the tensors that ``inputs`` makes.
        plain: torch's operators one by one; in float64 it is what both are compared with.
        inputs: from images ``[n, C, H, W]`` and a generator, the tensors by name.
        narrow: which of these are in bf16 already where a network runs under autocast: what another layer computed.
    """

    name: str
    channels: int
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: Callable[[Tensor, torch.Generator], Tensors]
    narrow: frozenset[str] = frozenset()


def _smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    corners = torch.rand(*shape[:2], 3, 3, generator=generator)
    return F.interpolate(corners, size=shape[2:], mode="bilinear", align_corners=True)


IMAGES: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "noise": lambda shape, generator: torch.rand(shape, generator=generator),
    "smooth": _smooth,
    "constant": lambda shape, generator: torch.full(shape, 0.7853),
    "each constant": lambda shape, generator: torch.rand(*shape[:2], 1, 1, generator=generator).expand(shape).clone(),
}
"""From a shape ``[n, C, H, W]``, images between 0 and 1; ``"each constant"``: other ones in each image and channel."""

RANGES: dict[str, tuple[float, float]] = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "100..101": (1.0, 100.0)}
"""Factor and offset."""


def make_images(kind: str, span: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images of a kind and a range."""
    factor, offset = RANGES[span]
    return IMAGES[kind](shape, generator) * factor + offset


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) - 0.5


def _affine(count: int, generator: torch.Generator) -> Tensors:
    weight = 1 + _draw(generator, count)
    weight[::5] *= -1  # turns maxima into minima
    return {"weight": weight, "bias": _draw(generator, count)}


def edge_filters(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """3x3 filters whose values add up to 0 in each channel: half of them answer no slope either."""
    across = torch.arange(3.0).repeat(3) - 1
    down = torch.arange(3.0).repeat_interleave(3) - 1
    free = _draw(generator, count, channels, 9).double()
    for direction in (torch.ones(9), across, down):
        unit = (direction / direction.norm()).double()
        rows = slice(None) if direction.min() > 0 else slice(0, count // 2)
        free[rows] -= (free[rows] @ unit)[..., None] * unit
    return free.float().unflatten(2, (3, 3))


def _any_filters(count: int, channels: int, generator: torch.Generator) -> Tensor:
    return _draw(generator, count, channels, 3, 3)


def _filtered(count: int, make: Callable[..., Tensor], affine: bool) -> Callable[[Tensor, torch.Generator], Tensors]:
    def inputs(images: Tensor, generator: torch.Generator) -> Tensors:
        filters = make(count, images.shape[1], generator)
        more = _affine(count, generator) if affine else {"bias": _draw(generator, count)}
        return {"images": images, "filters": filters, **more}

    return inputs


def _our_block(images: Tensor, filters: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return first_block(images, filters, Geometry(padding=(1, 1)), weight, bias, EPS, relu=True)


def _plain_block(images: Tensor, filters: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = F.conv2d(images, filters, padding=1)
    return F.max_pool2d(F.batch_norm(y, None, None, weight, bias, True, 0.0, EPS), 2).relu()


def _blocks(name: str, channels: int, count: int, make: Callable[..., Tensor]) -> Kernel:
    return Kernel(name, channels, _our_block, _plain_block, _filtered(count, make, affine=True))


def _norm(pool: bool, relu: bool) -> Kernel:
    def plain(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.batch_norm(images, None, None, weight, bias, True, 0.0, EPS)
        y = F.max_pool2d(y, 2) if pool else y
        return y.relu() if relu else y

    def inputs(images: Tensor, generator: torch.Generator) -> Tensors:
        return {"images": images, **_affine(images.shape[1], generator)}

    def ours(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalise(images, weight, bias, EPS, pool, relu)

    what = [name for name, on in (("pool", pool), ("ReLU", relu)) if on]
    return Kernel(" + ".join(["batch norm", *what]), 8, ours, plain, inputs, frozenset({"images"}))


def _conv(name: str, channels: int, count: int, make: Callable[..., Tensor]) -> Kernel:
    return Kernel(
        name, channels,
        lambda images, filters, bias: conv2d(images, filters, bias, Geometry(padding=(1, 1))),
        lambda images, filters, bias: F.conv2d(images, filters, bias, padding=1),
        _filtered(count, make, affine=False),
    )  # fmt: skip


def _attention(name: str, masked: bool) -> Kernel:
    """The rows of an image are its tokens, and its three channels queries, keys and values."""

    def seen(key: Tensor) -> Tensor | None:
        length = key.shape[-2]
        return torch.arange(length, device=key.device) < 3 * length // 4 if masked else None

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with ambient.Change(twice_differentiable=True):
            return attend(F.scaled_dot_product_attention, (query, key, value), {"attn_mask": seen(key)})

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        mask = seen(key)
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ value

    def inputs(images: Tensor, generator: torch.Generator) -> Tensors:
        return {name: images[:, channel].clone() for channel, name in enumerate(("query", "key", "value"))}

    return Kernel(name, 3, ours, plain, inputs)


def _weight_norm(name: str, dim: int) -> Kernel:
    def ours(direction: Tensor, length: Tensor) -> Tensor:
        with ambient.Change(twice_differentiable=True):
            return normalise_weight(direction, length, dim)

    def plain(direction: Tensor, length: Tensor) -> Tensor:
        square = direction.square()
        return direction * (length / (square.sum() if dim < 0 else square.sum((1, 2), keepdim=True)).sqrt())

    def inputs(images: Tensor, generator: torch.Generator) -> Tensors:
        direction = images.flatten(0, 1)
        length = torch.rand(len(direction), 1, 1, generator=generator) if dim == 0 else torch.tensor(1.7)
        return {"direction": direction, "length": length}

    return Kernel(name, 2, ours, plain, inputs)


KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        _blocks("first block", 1, 36, _any_filters),
        _blocks("first block, edges", 1, 36, edge_filters),
        _blocks("first block, colour", 3, 32, _any_filters),
        _blocks("first block, colour, edges", 3, 32, edge_filters),
        *(_norm(pool, relu) for pool in (False, True) for relu in (False, True)),
        _conv("conv", 3, 16, _any_filters),
        _conv("conv, edges", 3, 16, edge_filters),
        _conv("conv, unfolded", 1, 36, _any_filters),
        _conv("conv, unfolded, edges", 1, 36, edge_filters),
        _attention("attention", masked=False),
        _attention("attention, padding", masked=True),
        _weight_norm("weight norm", 0),
        _weight_norm("weight norm, whole", -1),
    )
}
