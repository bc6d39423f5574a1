"""The rows of the GPU benchmark: our step in its ways and precisions, and others' steps beside it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from systems import SYSTEMS, Running, build
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from works import Work, network, noise

from metalearn import ANIL, MAML, Batch, Episode
from metalearn.inner.kernels import conv
from metalearn.inner.kernels.conv_choice import ConvChoice

__all__ = ["Row", "few", "list_rows", "make_module", "place", "precision"]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: as printed.
        options: of our module; ``None`` for a row that is not ours.
        make: makes the step of a row that is not ours, from the work and the device.
        arithmetic: ``"as torch has it"`` multiplies in tf32 in convolutions alone, ``"tf32"`` everywhere, ``"fp32"`` nowhere,
            and ``"bf16"`` runs under autocast.
        path: the way of convolutions; ``None`` for the fastest.
    """

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)
    make: Callable[[Work, str], Callable[[], object]] | None = None
    arithmetic: str = "as torch has it"
    path: str | None = None

    def build(self, work: Work, device: str) -> Callable[[], None]:
        """A forward and a backward pass, in the row's own setting."""
        choice = ConvChoice()  # timed anew in every setting
        choice.forced = self.path

        @contextlib.contextmanager
        def setting() -> Iterator[None]:
            before, conv.CHOICE = conv.CHOICE, choice
            try:
                with precision(self.arithmetic, device):
                    yield
            finally:
                conv.CHOICE = before

        with setting():
            step = self.make(work, device) if self.make else _make_step(work, device, **(self.options or {}))

        def run() -> None:
            with setting():
                step()

        return run


@contextlib.contextmanager
def precision(kind: str, device: str) -> Iterator[None]:
    """The arithmetic of products within this context."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32, convolutions.allow_tf32 = kind == "tf32", kind != "fp32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=kind == "bf16", cache_enabled=False):
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def list_rows(work: Work, compiled: bool) -> list[Row]:
    """The rows that fit a work."""
    graph = {"compile": "graph"}
    rows = [
        Row("ours"),
        Row("ours, recorded", graph),
        Row("ours, recorded, tf32", graph, arithmetic="tf32"),
        Row("ours, recorded, bf16", graph, arithmetic="bf16"),
        Row("ours, recorded, grouped", graph, path="grouped"),
        Row("ours, recorded, patches, tf32", graph, arithmetic="tf32", path="patches"),
        Row("ours, recorded, turns", graph, path="turns"),
        Row("ours, fp32", arithmetic="fp32"),
        Row("ours, tf32", arithmetic="tf32"),
        Row("ours, bf16", arithmetic="bf16"),
        Row("ours, grouped", path="grouped"),
        Row("ours, patches", path="patches"),
        Row("ours, turns", path="turns"),
    ]
    if work.order == 2:
        rows += [Row("ours, remat", {"memory": "remat"}), Row("ours, recorded, remat", {"memory": "remat", **graph})]
    if compiled:
        rows += [
            Row("ours, compiled", {"compile": True}),
            Row("ours, compiled, tf32", {"compile": True}, arithmetic="tf32"),
        ]
    learn2learn = next(system for system in SYSTEMS if system.name == "learn2learn 0.2.0")
    if not learn2learn.why_not(work):

        def make(work: Work, device: str) -> Callable[[], object]:
            return build(learn2learn, work, device, torch.float32).step

        rows += [Row("learn2learn 0.2.0", None, make), Row("learn2learn 0.2.0, tf32", None, make, "tf32")]
    if work.algorithm == "maml" and work.steps < 50:
        rows += [
            Row("torch.func vmap, norm by hand", None, _make_vmap),
            Row("torch.func vmap, norm by hand, tf32", None, _make_vmap, "tf32"),
        ]
    return rows


def few(episode: Episode, tasks: int = 2) -> Episode:
    """Its first tasks."""
    return Episode(*(Batch(role.x[:tasks], role.y[:tasks]) for role in episode))


def place(episode: Episode, device: str, dtype: torch.dtype) -> Episode:
    """The episode on a device."""
    return Episode(*(Batch(role.x.to(device, dtype), role.y.to(device)) for role in episode))


def make_module(work: Work, device: str, dtype: torch.dtype, steps: int | None = None, **options: Any) -> Any:
    """Our module of a work."""
    kind: Any = ANIL if work.algorithm == "anil" else MAML
    steps = steps or work.steps
    module = kind(network(work), inner_steps=steps, inner_lr=work.lr, first_order=work.order == 1, **options)
    return module.to(device, dtype)


def _make_step(work: Work, device: str, **options: Any) -> Callable[[], None]:
    """The meta-gradient as a training step takes it; its checks, which ask the device, belong to the training loop."""
    module, episode = make_module(work, device, torch.float32, **options), place(noise(work), device, torch.float32)

    def step() -> None:
        module.zero_grad()
        module.meta_loss(episode).loss.backward()

    return step


class PlainNorm(nn.Module):
    """Batch normalisation by the statistics of the batch, written with elementary operators, which vmap gets right."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scale = torch.rsqrt(centred.square().mean((0, 2, 3), keepdim=True) + self.eps)
        return centred * scale * self.weight[:, None, None] + self.bias[:, None, None]


def vmap_gradient(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    """``grad`` of a mean over ``vmap`` of a task, as a reader of torch's manual writes it."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, PlainNorm(layer))

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, params, (x,)), y)

    def task(params: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        for _ in range(steps):
            grads = grad(loss)(params, xs, ys)
            if work.order == 1:
                grads = {name: gradient.detach() for name, gradient in grads.items()}
            params = {name: value - work.lr * grads[name] for name, value in params.items()}
        return loss(params, xq, yq)

    def mean(params: dict[str, Tensor], *parts: Tensor) -> Tensor:
        return vmap(task, in_dims=(None, 0, 0, 0, 0))(params, *parts).mean()

    def gradient() -> dict[str, Tensor]:
        params = {name: value.detach() for name, value in net.named_parameters()}
        return grad(mean)(params, *episode.support, *episode.query)

    return Running(lambda: [gradient(), None][1], gradient)


def _make_vmap(work: Work, device: str) -> Callable[[], object]:
    net = network(work).to(device)
    return vmap_gradient(work, net, place(noise(work), device, torch.float32), work.steps).step
