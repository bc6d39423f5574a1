"""The first block in float32: no further from float64 than torch's own composition is, on images that lie outside noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import MAML, Batch, Conv4
from metalearn.inner.kernels import Geometry, first_block

FACTOR = 4


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator)


def smooth(generator: torch.Generator, size: int = 84, top: float = 255.0) -> Tensor:
    """Four grey images without detail."""
    corners = draw(generator, 4, 1, 3, 3)
    return F.interpolate(corners, size=size, mode="bilinear", align_corners=True) * top


def faded(generator: torch.Generator, size: int = 84) -> Tensor:
    """Smooth images that fade to 0 at the border."""
    window = torch.linspace(0, torch.pi, size).sin()
    return smooth(generator, size) * (window[:, None] * window) ** 2


def dotted(generator: torch.Generator) -> Tensor:
    """Smooth images with details of a pixel."""
    x = smooth(generator)
    x.view(4, -1)[:, :: 7056 // 20] = 255.0
    return x


IMAGES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "smooth, 28 px": lambda g: smooth(g, 28),
    "smooth, 224 px": lambda g: smooth(g, 224)[:1],
    "smooth, 0..1": lambda g: smooth(g, 84, 1.0),
    "smooth, 0..65535": lambda g: smooth(g, 84, 65535.0),
    "faded": faded,
    "faded, 224 px": lambda g: faded(g, 224)[:1],
    "dotted": dotted,
    "constant": lambda g: torch.full((4, 1, 28, 28), 200.3),
    "each constant": lambda g: (255 * draw(g, 4, 1, 1, 1)).expand(4, 1, 28, 28).contiguous(),
    "black": lambda g: torch.zeros(4, 1, 28, 28),
    "specks": lambda g: 200.3 + 1e-3 * (draw(g, 4, 1, 28, 28) > 0.99),
    "flat": lambda g: 200 + 1e-3 * draw(g, 4, 1, 28, 28),
    "flat at 1": lambda g: 1 + 1e-6 * draw(g, 4, 1, 28, 28),
    "paper": lambda g: 255.0 * (draw(g, 4, 1, 28, 28) > 0.1),
    "ramp": lambda g: 3 * torch.arange(84.0).expand(4, 1, 84, 84),
    "large": lambda g: 1e12 * draw(g, 4, 1, 28, 28),
}


def edge_filters(generator: torch.Generator) -> Tensor:
    """``[36, 1, 3, 3]`` that answer neither brightness nor slopes, or not brightness, or are all but one."""
    rows, columns = torch.meshgrid(torch.arange(3.0) - 1, torch.arange(3.0) - 1, indexing="ij")
    planes = torch.linalg.qr(torch.stack([torch.ones(9), rows.flatten(), columns.flatten()]).T)[0]
    free = draw(generator, 36, 9) - 0.5
    curved = free[:12] - free[:12] @ planes @ planes.T
    edges = free[12:24] - free[12:24].mean(1, keepdim=True)
    collinear = edges[:1] + 1e-4 * free[24:]
    return torch.cat([curved, edges, collinear]).view(36, 1, 3, 3)


def ours(x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    return first_block(x, filters, Geometry(padding=(padding, padding)), weight, bias, 1e-5, relu=True)


def composed(x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    y = F.conv2d(x, filters, padding=padding)
    return F.max_pool2d(F.batch_norm(y, None, None, weight, bias, True, 0.0, 1e-5), 2).relu()


def error(found: Tensor, exact: Tensor) -> float:
    assert not bool(found.isnan().any())
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp_min(1e-6))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", IMAGES)
def test_values_are_as_accurate_as_those_of_the_composition(name: str, padding: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, filters = IMAGES[name](generator), edge_filters(generator)
    weight, bias = 0.5 + draw(generator, 36), 0.1 + draw(generator, 36)
    exact = composed(x.double(), filters.double(), weight.double(), bias.double(), padding)
    plain = error(composed(x, filters, weight, bias, padding), exact)
    assert error(ours(x, filters, weight, bias, padding), exact) <= FACTOR * plain + 1e-6


def derivatives(function: Callable[..., Tensor], tensors: list[Tensor], padding: int, seed: int) -> list[Tensor]:
    """The first and second derivatives by all but the last tensors that ask for one."""
    generator = torch.Generator().manual_seed(seed)
    kind = tensors[0].dtype
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    y = function(*tensors, padding)
    first = torch.autograd.grad((y * y * draw(generator, *y.shape).to(kind)).sum(), wanted, create_graph=True)
    along = [(grad * (draw(generator, *grad.shape) - 0.5).to(kind)).sum() for grad in first]
    return [*first, *torch.autograd.grad(torch.stack(along).sum(), wanted)]


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", ["smooth, 0..65535", "faded", "constant", "flat", "paper"])
def test_derivatives_are_as_accurate_as_those_of_the_composition(name: str, padding: int, of_images: bool) -> None:
    """A maximum that moves to a neighbour within rounding may show, by less than ``1e-3``."""
    generator = torch.Generator().manual_seed(2)
    x, filters = IMAGES[name](generator), edge_filters(generator)
    tensors = [x, filters, 0.5 + draw(generator, 36), 0.1 + draw(generator, 36)]
    asks = [of_images, True, True, True]
    narrow = [tensor.clone().requires_grad_(ask) for tensor, ask in zip(tensors, asks, strict=True)]
    wide = [tensor.double().requires_grad_(ask) for tensor, ask in zip(tensors, asks, strict=True)]
    exact = derivatives(composed, wide, padding, 3)
    plain = derivatives(composed, narrow, padding, 3)
    for found, stock, value in zip(derivatives(ours, narrow, padding, 3), plain, exact, strict=True):
        assert error(found, value) <= FACTOR * error(stock, value) + 1e-3


def test_a_variance_below_rounding_gives_no_nan_without_eps() -> None:
    """Filters that answer slopes by a constant: what is left is rounding, and must not turn out negative."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        slopes = 7 * draw(generator, 4, 1, 1, 1) + 3
        x = slopes * torch.arange(41.0) + 11 * draw(generator, 4, 1, 1, 1) * torch.arange(41.0)[:, None]
        found = first_block(x, edge_filters(generator), Geometry(), None, None, 0.0, relu=False)
        assert bool(found.isfinite().all())


def test_adaptation_on_smooth_images_is_that_of_float64() -> None:
    """Through a network of ours, whose first filters know no brightness."""
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    net = Conv4(2, 1, 36, 84)
    with torch.no_grad():
        next(net.parameters()).copy_(edge_filters(generator))
    module = MAML(net, inner_steps=1, inner_lr=0.01)
    support, query = (smooth(generator) for _ in range(2))
    labels = torch.tensor([0, 0, 1, 1])
    found = module.adapt(Batch(support, labels))(query)
    exact = module.double().adapt(Batch(support.double(), labels))(query.double())
    assert error(found, exact) < 2e-2
