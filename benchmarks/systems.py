"""The systems of the inner-loop benchmark: ours in its modes, learn2learn, higher, and loops over torch.func."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from works import Work, network, noise

from metalearn import ANIL, MAML, Batch, Episode

__all__ = ["SYSTEMS", "Running", "System", "build", "reference_gradient"]

Params = dict[str, Tensor]


@dataclass
class Running:
    """A system on its work: ``step`` is a forward and a backward pass, ``gradient`` the meta-gradient by name."""

    step: Callable[[], None]
    gradient: Callable[[], Params]


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        name: as printed.
        ours: whether it is ours, and gets our allocator settings.
        make: from work, network, episode and whether bf16 autocast is on, what runs it.
        options: of our module.
        works: names of the works that the row is for; empty for all.
    """

    name: str
    make: Callable[..., Running]
    ours: bool = False
    bf16: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""

    def fits(self, work: Work, device: str) -> bool:
        if self.needs and not _installed(self.needs):
            return False
        if "vmap, stock" in self.name and (work.algorithm != "maml" or work.name == "50_steps"):
            return False
        if work.order == 1 and self.options.get("memory", "store") != "store":
            return False  # there is nothing to keep
        if work.algorithm == "anil" and ("torch.func" in self.name or "higher" in self.name or "mixed" in self.name):
            return False
        return not (work.name == "50_steps" and self.bf16)


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def build(system: System, work: Work, device: str, dtype: torch.dtype) -> Running:
    """A system ready to run; in float64, to compare gradients, on two tasks and two steps."""
    episode = noise(work)
    steps = work.steps
    if dtype == torch.float64:
        episode, steps = _few(episode), min(steps, 2)
    episode = Episode(*(Batch(role.x.to(device, dtype), role.y.to(device)) for role in episode))
    net = network(work).to(device, dtype)
    with _autocast(device, system.bf16 and dtype != torch.float64):
        running = system.make(work, net, episode, steps, **system.options)
    if not system.bf16 or dtype == torch.float64:
        return running

    def step() -> None:
        with _autocast(device, True):
            running.step()

    return Running(step, running.gradient)


def reference_gradient(work: Work) -> Params:
    """By a loop written with torch.autograd.grad alone, in float64, on two tasks and two steps."""
    net, episode = network(work).double(), _few(noise(work))
    outer = dict(net.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for task in range(len(episode.support.x)):
        params = dict(outer)
        names = [name for name in params if work.algorithm == "maml" or name.startswith("head")]
        for _ in range(min(work.steps, 2)):
            loss = F.cross_entropy(functional_call(net, params, (episode.support.x[task],)), episode.support.y[task])
            grads = torch.autograd.grad(loss, [params[name] for name in names], create_graph=work.order == 2)
            params |= {name: params[name] - work.lr * g for name, g in zip(names, grads, strict=True)}
        total = total + F.cross_entropy(functional_call(net, params, (episode.query.x[task],)), episode.query.y[task])
    grads = torch.autograd.grad(total / len(episode.support.x), list(outer.values()))
    return dict(zip(outer, grads, strict=True))


def _few(episode: Episode) -> Episode:
    return Episode(*(Batch(role.x[:2], role.y[:2]) for role in episode))


@contextlib.contextmanager
def _autocast(device: str, enabled: bool) -> Iterator[None]:
    with torch.autocast(device, torch.bfloat16, enabled=enabled, cache_enabled=False):
        yield


def _by_backward(net: nn.Module, run: Callable[[], None]) -> Running:
    def gradient() -> Params:
        net.zero_grad()
        run()
        return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}

    def step() -> None:
        net.zero_grad()
        run()

    return Running(step, gradient)


def _ours(work: Work, net: nn.Module, episode: Episode, steps: int, **options: Any) -> Running:
    kind: Any = ANIL if work.algorithm == "anil" else MAML
    module = kind(net, inner_steps=steps, inner_lr=work.lr, first_order=work.order == 1, **options)
    module.to(episode.support.x.device)
    prefix = "backbone."

    def step() -> None:
        module.zero_grad()
        module.training_step(episode, 0).backward()

    def gradient() -> Params:
        return {name.removeprefix(prefix): value for name, value in module.meta_gradient(episode).items()}

    return Running(step, gradient)


def _learn2learn(work: Work, net: Any, episode: Episode, steps: int) -> Running:
    import learn2learn as l2l

    (xs, ys), (xq, yq) = episode
    adapting = net.head if work.algorithm == "anil" else net
    maml = l2l.algorithms.MAML(adapting, lr=work.lr, first_order=work.order == 1)
    encode = net.body if work.algorithm == "anil" else nn.Identity()

    def run() -> None:
        for task in range(len(xs)):
            support, query = encode(xs[task]), encode(xq[task])
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(support), ys[task]))
            (F.cross_entropy(learner(query), yq[task]) / len(xs)).backward()

    return _by_backward(net, run)


def _higher(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    import higher

    (xs, ys), (xq, yq) = episode
    inner = torch.optim.SGD(net.parameters(), lr=work.lr)

    def constant(grads: list[Tensor]) -> list[Tensor]:
        return [gradient.detach() for gradient in grads] if work.order == 1 else grads

    def run() -> None:
        for task in range(len(xs)):
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (functional, optimizer):
                for _ in range(steps):
                    optimizer.step(F.cross_entropy(functional(xs[task]), ys[task]), grad_callback=constant)
                (F.cross_entropy(functional(xq[task]), yq[task]) / len(xs)).backward()

    return _by_backward(net, run)


def _task_loss(work: Work, net: nn.Module, steps: int) -> Callable[..., Tensor]:
    """The query loss of one task by torch.func, statistics of each set as torch's layers in training mode take them."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
            layer.num_batches_tracked = None

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, params, (x,)), y)

    def task(params: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        for _ in range(steps):
            grads = grad(loss)(params, xs, ys)
            if work.order == 1:
                grads = {name: gradient.detach() for name, gradient in grads.items()}
            params = {name: value - work.lr * grads[name] for name, value in params.items()}
        return loss(params, xq, yq)

    return task


def _func_loop(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    task = _task_loss(work, net, steps)
    (xs, ys), (xq, yq) = episode

    def gradient() -> Params:
        params = {name: value.detach() for name, value in net.named_parameters()}
        total: Params = {}
        for index in range(len(xs)):
            gradients = grad(task)(params, xs[index], ys[index], xq[index], yq[index])
            total = {name: total.get(name, 0) + value / len(xs) for name, value in gradients.items()}
        return total

    return Running(lambda: [gradient(), None][1], gradient)


def _func_vmap(work: Work, net: nn.Module, episode: Episode, steps: int) -> Running:
    task = _task_loss(work, net, steps)

    def mean(params: Params, *parts: Tensor) -> Tensor:
        return vmap(task, in_dims=(None, 0, 0, 0, 0))(params, *parts).mean()

    def gradient() -> Params:
        params = {name: value.detach() for name, value in net.named_parameters()}
        return grad(mean)(params, *episode.support, *episode.query)

    return Running(lambda: [gradient(), None][1], gradient)


SYSTEMS = [
    System("ours: auto", _ours, ours=True),
    System("ours: auto, remat", _ours, ours=True, options={"memory": "remat"}),
    System("ours: auto, mixed", _ours, ours=True, options={"memory": "mixed"}),
    System("ours: auto, bf16", _ours, ours=True, bf16=True),
    System("ours: sequential", _ours, ours=True, options={"execution": "sequential"}),
    System("ours: sequential, remat", _ours, ours=True, options={"execution": "sequential", "memory": "remat"}),
    System("ours: compiled", _ours, ours=True, options={"compile": True}),
    System("ours: compiled, bf16", _ours, ours=True, bf16=True, options={"compile": True}),
    System("learn2learn 0.2.0", _learn2learn, needs="learn2learn"),
    System("learn2learn 0.2.0, bf16", _learn2learn, bf16=True, needs="learn2learn"),
    System("higher 0.2.1", _higher, needs="higher"),
    System("torch.func loop", _func_loop),
    System("torch.func vmap, stock layers", _func_vmap),
]
