"""What a convolution sees of images, and its moments: of a support set once in the course of an inner loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.ambient import remember
from metalearn.inner.kernels.batch_norm import choose_accumulator
from metalearn.inner.kernels.conv import unfold
from metalearn.inner.kernels.patch_moments import choose_widest, column_moments, image_moments
from metalearn.inner.kernels.plain_conv import Geometry, on_cpu
from metalearn.inner.kernels.pooled_product import cut

__all__ = ["Describe", "View"]

FLAT = 4.0
"""Of images, from this quotient of mean and standard deviation on."""


class View(NamedTuple):
    """How a convolution looks at images.

    Attributes:
        geometry: of the convolution.
        kernel: height and width.
        images: whether the images themselves are wanted, not their patches in columns.
    """

    geometry: Geometry
    kernel: tuple[int, int]
    images: bool

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is multiplied with the filters, and the :class:`Moments` of the patches."""
        seen, inside = _darken(x, self.geometry.padding), self.geometry._replace(padding=(0, 0))
        if self.images:
            parts = cut(len(x), seen[0].numel() * self.kernel[1], on_cpu(x))
            return seen, *image_moments(seen, self.kernel, parts)
        seen = unfold(seen, self.kernel, inside)
        return seen, *column_moments(seen, cut(len(x), seen[0].numel(), on_cpu(x)))


class Describe(torch.autograd.Function):
    """:meth:`View.describe`, of images that are constants once in the course of an inner loop."""

    @staticmethod
    def forward(x: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
        return _remember(view.describe, x, view)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.view = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if again else x.detach().requires_grad_()
            (of_x,) = torch.autograd.grad(ctx.view.describe(x), x, grads, create_graph=again)
        return of_x, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, view: View) -> Any:
        describe = torch.func.vmap(view.describe, in_dims=in_dims[0] or 0)
        return _remember(describe, x, (view, in_dims[0])), (0, 0, 0)


def _remember(describe: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, view: object) -> Any:
    if x.requires_grad or type(x) is not Tensor:
        return describe(x)
    return remember(lambda: describe(x), [x], view)


def _darken(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """``x``, padded, less the mean of each channel where that is above ``FLAT`` times the deviation.

    Products are then rounded by the images' contrast in the place of their brightness.

    A shift of all that a filter sees shifts its output, which normalisation takes away: to every derivative it is a constant.
    Nearly all pixels are then between half and twice the mean, so that their differences to it are exact. Otherwise nothing is
    subtracted: what lies near zero has digits to lose.
    """
    high, wide = padding
    x = F.pad(x.to(choose_accumulator(x)), (wide, wide, high, high))
    inside = x.detach()[:, :, high : x.shape[2] - high, wide : x.shape[3] - wide]
    mean = inside.mean((0, 2, 3), keepdim=True, dtype=choose_widest(x)).to(x.dtype)  # of a constant image, itself
    variance = (inside - mean).square().mean((0, 2, 3), keepdim=True)
    return x - torch.where(mean * mean > FLAT**2 * variance, mean, 0.0)[0]
