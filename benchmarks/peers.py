"""What the inner-loop benchmark holds beside ours: learn2learn, higher, and loops over torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from works import Work

from metalearn import Episode

__all__ = [
    "NormByHand",
    "Params",
    "Running",
    "run_func_loop",
    "run_func_vmap",
    "run_func_vmap_by_hand",
    "run_higher",
    "run_learn2learn",
    "split",
]

Params = dict[str, Tensor]


@dataclass
class Running:
    """A system on its work: ``step`` is a forward and a backward pass, ``gradient`` the meta-gradient by name."""

    step: Callable[[], None]
    gradient: Callable[[], Params]


class NormByHand(nn.Module):
    """Batch or layer normalisation of elementary operators, as users write it for ``torch.func.vmap``.

    Statistics are those of what comes in.
    """

    def __init__(self, source: nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = source.weight, source.bias, source.eps
        self.by_channel = not isinstance(source, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        axes = (0, *range(2, x.ndim)) if self.by_channel else (-1,)
        shape = (-1, *[1] * (x.ndim - 2)) if self.by_channel else (-1,)
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square().mean(axes, keepdim=True)
        y = (x - mean) * torch.rsqrt(variance + self.eps)
        return y * self.weight.view(shape) + self.bias.view(shape)


def split(work: Work, net: Any) -> tuple[nn.Module, nn.Module]:
    """What no inner step moves, and what the inner loop adapts to its output."""
    return (net.body, net.head) if work.algorithm == "anil" else (nn.Identity(), net)


def _by_backward(net: nn.Module, run: Callable[[], None]) -> Running:
    def gradient() -> Params:
        net.zero_grad()
        run()
        return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}

    def step() -> None:
        net.zero_grad()
        run()

    return Running(step, gradient)


def run_learn2learn(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    """Its MAML, over the head on features of a shared body for ANIL, as in its examples."""
    import learn2learn as l2l

    (xs, ys), (xq, yq) = episode
    encode, adapting = split(work, net)
    maml = l2l.algorithms.MAML(adapting, lr=work.lr, first_order=work.order == 1)

    def run() -> None:
        for task in range(len(xs)):
            support, query = encode(xs[task]), encode(xq[task])
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(support), ys[task]))
            (F.cross_entropy(learner(query), yq[task]) / len(xs)).backward()

    return _by_backward(net, run)


def run_higher(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    """Its differentiable SGD."""
    import higher

    (xs, ys), (xq, yq) = episode
    encode, adapting = split(work, net)
    inner = torch.optim.SGD(adapting.parameters(), lr=work.lr)

    def constant(grads: list[Tensor]) -> list[Tensor]:
        return [gradient.detach() for gradient in grads] if work.order == 1 else grads

    def run() -> None:
        for task in range(len(xs)):
            support, query = encode(xs[task]), encode(xq[task])
            with higher.innerloop_ctx(adapting, inner, copy_initial_weights=False) as (functional, optimizer):
                for _ in range(steps):
                    optimizer.step(F.cross_entropy(functional(support), ys[task]), grad_callback=constant)
                (F.cross_entropy(functional(query), yq[task]) / len(xs)).backward()

    return _by_backward(net, run)


def _task_loss(work: Work, net: nn.Module, steps: int) -> Callable[..., Tensor]:
    """The query loss of one task by torch.func, statistics of each set as torch's layers in training mode take them."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
            layer.num_batches_tracked = None
    encode, adapting = split(work, net)
    anil = work.algorithm == "anil"

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(adapting, params, (x,)), y)

    def task(params: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        if anil:
            body = {name.removeprefix("body."): value for name, value in params.items() if name.startswith("body.")}
            xs, xq = functional_call(encode, body, (xs,)), functional_call(encode, body, (xq,))
            params = {name.removeprefix("head."): value for name, value in params.items() if name.startswith("head.")}
        for _ in range(steps):
            grads = grad(loss)(params, xs, ys)
            if work.order == 1:
                grads = {name: gradient.detach() for name, gradient in grads.items()}
            params = {name: value - work.lr * grads[name] for name, value in params.items()}
        return loss(params, xq, yq)

    return task


def _by_function(gradient: Callable[[], Params]) -> Running:
    def step() -> None:
        gradient()

    return Running(step, gradient)


def run_func_loop(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    """``torch.func.grad``, task by task."""
    task = _task_loss(work, net, steps)
    (xs, ys), (xq, yq) = episode

    def gradient() -> Params:
        params = {name: value.detach() for name, value in net.named_parameters()}
        total: Params = {}
        for index in range(len(xs)):
            gradients = grad(task)(params, xs[index], ys[index], xq[index], yq[index])
            total = {name: total.get(name, 0) + value / len(xs) for name, value in gradients.items()}
        return total

    return _by_function(gradient)


def run_func_vmap(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    """``torch.func.vmap`` over the tasks."""
    task = _task_loss(work, net, steps)

    def mean(params: Params, *parts: Tensor) -> Tensor:
        return vmap(task, in_dims=(None, 0, 0, 0, 0))(params, *parts).mean()

    def gradient() -> Params:
        params = {name: value.detach() for name, value in net.named_parameters()}
        return grad(mean)(params, *episode.support, *episode.query)

    return _by_function(gradient)


def run_func_vmap_by_hand(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    """:func:`run_func_vmap` with each normalisation written by hand: torch's have a wrong second derivative there."""
    for layer in list(net.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
                setattr(layer, name, NormByHand(child))
    return run_func_vmap(work, net, episode, steps)
