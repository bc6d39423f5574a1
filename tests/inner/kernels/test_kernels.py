"""Our operators against torch's, in float64: values, first and second derivatives, one task at a time and under vmap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metalearn.inner.ambient import remembering
from metalearn.inner.kernels import Geometry, conv, conv2d, first_block, normalise
from metalearn.inner.kernels.conv_choice import CHOICE
from metalearn.inner.kernels.pooled_product import cut
from metalearn.inner.kernels.views import View

TASKS = 3
Function = Callable[..., Tensor]


def tensor(*shape: int, shared: bool = False, positive: bool = False) -> Tensor:
    """A leaf for each task, or one that all share."""
    shape = shape if shared else (TASKS, *shape)
    value = torch.rand(shape, dtype=torch.float64) + 0.5 if positive else torch.randn(shape, dtype=torch.float64)
    return value.requires_grad_()


def derivatives(function: Function, inputs: Sequence[Tensor], shared: Sequence[bool], batched: bool) -> list[Tensor]:
    """Outputs, gradients along a random cotangent, and gradients of these along random directions."""
    torch.manual_seed(1)
    if batched:
        y = vmap(function, in_dims=tuple(None if each else 0 for each in shared))(*inputs)
    else:
        rows = ([x if each else x[task] for x, each in zip(inputs, shared, strict=True)] for task in range(TASKS))
        y = torch.stack([function(*row) for row in rows])
    y = y.contiguous().tanh()
    cotangent = torch.randn_like(y).requires_grad_()
    wanted = [x for x in inputs if x.requires_grad]
    first = torch.autograd.grad((y * cotangent).sum(), wanted, create_graph=True)
    along = sum((grad * torch.randn_like(grad.contiguous())).sum() for grad in first)
    return [y, *first, *torch.autograd.grad(along, [*wanted, cotangent], materialize_grads=True)]  # type: ignore[list-item]


def check(ours: Function, theirs: Function, inputs: Sequence[Tensor], shared: Sequence[bool]) -> None:
    expected = derivatives(theirs, inputs, shared, batched=False)
    for batched in (False, True):
        for found, value in zip(derivatives(ours, inputs, shared, batched), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("channels", "filters", "groups"), [(1, 36, 1), (2, 40, 2), (3, 6, 1), (3, 6, 3), (6, 6, 2)])
@pytest.mark.parametrize("path", [None, "grouped", "patches", "turns"])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2), (2, 1)])
def test_convolution(
    channels: int,
    filters: int,
    groups: int,
    shared: bool,
    path: str | None,
    dilation: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``path`` is how tasks are computed on other devices than the CPU; (1, 36) takes the product with patches on a CPU."""
    geometry = Geometry((2, 1), (1, 2), dilation, groups)
    if path is not None:
        monkeypatch.setattr(conv, "on_cpu", lambda x: False)
        monkeypatch.setattr(CHOICE, "forced", path)
    inputs = [tensor(3, channels, 5, 6), tensor(filters, channels // groups, 3, 3, shared=shared), tensor(filters)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(x, weight, bias, geometry)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    check(ours, theirs, inputs, [False, shared, False])


def test_a_geometry_is_the_plain_one_where_nothing_is_said() -> None:
    x, weight = tensor(2, 3, 5, 6, shared=True), tensor(4, 3, 3, 2, shared=True)
    torch.testing.assert_close(conv2d(x, weight, None, Geometry()), F.conv2d(x, weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("filters", "channels", "groups", "short"),
    [(36, 1, 1, True), (64, 1, 1, True), (35, 1, 1, False), (64, 3, 1, False), (128, 1, 2, False)],
)
def test_patches_are_short_up_to_a_quarter_of_the_filters(
    filters: int, channels: int, groups: int, short: bool
) -> None:
    """The values are the same either way; beyond, the product is the slower one."""
    weight = torch.zeros(filters, channels, 3, 3)
    assert conv.has_short_patches(weight, Geometry(groups=groups)) is short


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_normalisation(pool: bool, relu: bool, negative: bool, shared: bool) -> None:
    """A negative weight turns maxima into minima."""
    weight = tensor(4, shared=shared, positive=True)
    if negative:
        weight.data[..., 1] *= -1
    inputs = [tensor(3, 4, 5, 6), weight, tensor(4, shared=shared)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalise(x, weight, bias, 1e-5, pool, relu)

    check(ours, lambda *args: stock_block(*args, pool=pool, relu=relu), inputs, [False, shared, shared])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_first_block(
    channels: int, pieces: int, relu: bool, constant: bool, negative: bool, shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In one piece, and image by image; grey images by their patches, colour images as they are."""
    if pieces == 3:
        monkeypatch.setattr(sys.modules["metalearn.inner.kernels.pooled_product"], "AT_ONCE", 1)
    images, weight = tensor(3, channels, 7, 6), tensor(4, shared=shared, positive=True)
    if negative:
        weight.data[..., 1] *= -1
    if constant:
        images = images.detach()
    inputs = [images, tensor(4, channels, 3, 3, shared=shared), weight, tensor(4, shared=shared)]
    inputs[1].data[..., 2, :, :, :] = 0  # has no variance, but its second derivative

    def ours(x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return first_block(x, filters, Geometry((1, 1), (1, 1)), weight, bias, 1e-5, relu)

    def theirs(x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return stock_block(F.conv2d(x, filters, None, 1, 1), weight, bias, pool=True, relu=relu)

    check(ours, theirs, inputs, [False, shared, shared, shared])


@pytest.mark.parametrize(("at_once", "step"), [(159, 1), (160, 2), (239, 2), (240, 3), (1, 1), (9999, 124)])
def test_pieces_hold_as_many_images_as_fit(at_once: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, ten places and four filters are 80 values an image; a piece has one image at least."""
    monkeypatch.setattr(sys.modules["metalearn.inner.kernels.pooled_product"], "AT_ONCE", at_once)
    pieces = cut(5, 2 * 10 * 4, on_cpu=True)
    assert [range(5)[piece] for piece in pieces] == [range(5)[first : first + step] for first in range(0, 5, step)]


BLOCKS: dict[str, tuple[Function, Function]] = {
    "convolution": (
        lambda x, w, b: conv2d(x, w, b, Geometry(padding=(1, 1))),
        lambda x, w, b: F.conv2d(x, w, b, 1, 1),
    ),
    "normalisation": (
        lambda x, w, b: normalise(x * w[:2, 0].sum((1, 2))[:, None, None], b[:2].exp(), b[2:4], 1e-5, True, True),
        lambda x, w, b: stock_block(x * w[:2, 0].sum((1, 2))[:, None, None], b[:2].exp(), b[2:4], True, True),
    ),
    "first block": (
        lambda x, w, b: first_block(x, w, Geometry(padding=(1, 1)), b.exp(), b, 1e-5, True),
        lambda x, w, b: stock_block(F.conv2d(x, w, None, 1, 1), b.exp(), b, True, True),
    ),
}


@pytest.mark.parametrize("only", [0, 1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_second_derivatives_of_one_gradient_alone(name: str, only: int) -> None:
    """As a penalty on the gradient of the images, or of one weight, takes them: the others have no cotangent."""
    torch.manual_seed(2)
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((3, 2, 6, 6), (8, 2, 3, 3), (8,))]
    found = []
    for function in BLOCKS[name]:
        y = function(*inputs).contiguous().tanh()
        (grad,) = torch.autograd.grad(y.square().sum(), inputs[only], create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), inputs, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((1, 2), (0, 1), (2, 1)),
        Geometry((2, 1), (2, 0), (1, 2)),
        Geometry((1, 1), (1, 2), (1, 1)),
    ],
)
def test_first_block_of_unequal_sides(geometry: Geometry, channels: int) -> None:
    """One image of each task, in several channels, bright enough to be darkened, and no affine map."""
    inputs = [tensor(1, channels, 9, 8), tensor(6, channels, 3, 2)]
    inputs[0].data += 20 * torch.arange(1.0, channels + 1)[:, None, None]

    def ours(x: Tensor, filters: Tensor) -> Tensor:
        return first_block(x, filters, geometry, None, None, 1e-5, relu=False)

    def theirs(x: Tensor, filters: Tensor) -> Tensor:
        y = F.conv2d(x, filters, None, *geometry)
        return stock_block(y, y.new_ones(6), y.new_zeros(6), pool=True, relu=False)

    check(ours, theirs, inputs, [False, False])


def test_statistics_of_nearly_constant_images_keep_their_digits() -> None:
    """A variance as a difference of large moments would be noise here: images of 1 with a spread of 1e-3, in float32."""
    torch.manual_seed(0)
    x = 1 + 1e-3 * torch.randn(8, 1, 10, 10)
    filters = torch.randn(36, 1, 3, 3)
    inside = Geometry((1, 1), (0, 0))
    found = first_block(x, filters, inside, None, None, 1e-12, relu=False)
    exact = stock_block(
        F.conv2d(x.double(), filters.double()), torch.ones(36).double(), torch.zeros(36).double(), True, False, 1e-12
    )
    assert float((found - exact).norm() / exact.norm()) < 1e-2
    y = F.conv2d(x, filters)
    plain = F.max_pool2d(F.batch_norm(y, None, None, None, None, True, 0.0, 1e-12), 2)
    assert float((found - exact).norm()) < 2 * float((plain - exact).norm()) + 1e-3


def stock_block(x: Tensor, weight: Tensor, bias: Tensor, pool: bool, relu: bool, eps: float = 1e-5) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    y = F.max_pool2d(y, 2) if pool else y
    return y.relu() if relu else y


def test_bf16_statistics_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    x = (torch.randn(64, 8, 16, 16) + 3).bfloat16()
    found = normalise(x, None, None, 1e-5)
    assert found.dtype == torch.bfloat16
    exact = F.batch_norm(x.float(), None, None, None, None, True, 0.0, 1e-5)
    assert float((found.float() - exact).abs().max()) < 0.05


def test_sums_of_bf16_gradients_keep_their_digits() -> None:
    """363 ones: bf16 has no such number."""
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    y = normalise(torch.randn(3, 8, 11, 11).bfloat16(), weight, bias, 1e-5)
    (grad,) = torch.autograd.grad(y.sum(), bias)
    assert grad.tolist() == [363.0] * 8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stacked", [False, True])
def test_support_images_are_described_once(stacked: bool, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the course of an inner loop; what is written to, or is another tensor, is described anew."""
    described: list[Tensor] = []
    describe = View.describe

    def count(view: View, x: Tensor) -> object:
        described.append(x)
        return describe(view, x)

    monkeypatch.setattr(View, "describe", count)
    torch.manual_seed(3)
    x, filters = torch.randn(2, 3, channels, 8, 8), torch.randn(36, channels, 3, 3)

    def run(x: Tensor) -> Tensor:
        return first_block(x, filters, Geometry(padding=(1, 1)), None, None, 1e-5, True)

    def call(x: Tensor) -> Tensor:
        return vmap(run)(x) if stacked else run(x[0])

    expected = call(x)
    described.clear()
    with remembering(True):
        torch.testing.assert_close([call(x) for _ in range(3)], [expected] * 3, rtol=0, atol=0)
        assert len(described) == 1
        torch.testing.assert_close(call(x[:1]), expected[:1] if stacked else expected, rtol=1e-6, atol=1e-6)
        x.mul_(2).add_(torch.randn(x.shape))
        changed = call(x)
        assert len(described) == (3 if stacked else 2)
        with remembering(False):
            torch.testing.assert_close(call(x), changed, rtol=0, atol=0)
    torch.testing.assert_close(call(x), changed, rtol=0, atol=0)
