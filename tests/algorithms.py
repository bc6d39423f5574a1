"""The episodic algorithms: one entry each, from which the tests that concern all of them are driven.

To have a new algorithm tested, add its entry: its meta-gradient, freezing, runs, evaluation, checkpoints, copies, several
processes, precision, summary, arguments, options and help then have their tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import (
    ALFA,
    ANIL,
    IMAML,
    MAML,
    Baseline,
    BilevelFewShot,
    Episode,
    MeTAL,
    MetaModule,
    Pooled,
    ProtoNet,
    PrototypeHead,
    Reptile,
)

Params = dict[str, Tensor]
Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support inputs and targets, query inputs and targets."""


class Smooth(nn.Module):
    """A body without kinks, and a head, for images of 8 x 8."""

    def __init__(self, ways: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
        self.head = nn.Linear(6, ways)

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        return self.body(x) if features else self.head(self.body(x))


def descend(
    net: nn.Module, start: Params, task: Task, moving: list[str], steps: int, lr: float, **more: float
) -> Params:
    """Gradient steps on the support loss, with their graph, plus ``penalty / 2 |w - start|^2``."""
    params, tie = dict(start), more.get("penalty", 0.0)
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(net, params, (task[0],)), task[1])
        loss = loss + tie / 2 * sum(((params[name] - start[name]) ** 2).sum() for name in moving)
        grads = torch.autograd.grad(loss, [params[name] for name in moving], create_graph=True)
        params |= {name: params[name] - lr * grad for name, grad in zip(moving, grads, strict=True)}
    return params


def query_loss(net: nn.Module, params: Params, task: Task) -> Tensor:
    return F.cross_entropy(functional_call(net, params, (task[2],)), task[3])


def maml(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    return query_loss(net, descend(net, start, task, moving, 2, 0.3), task)


def fomaml(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    """The gradient at the adapted weights, as if it were one by the initial ones."""
    there = descend(net, start, task, moving, 2, 0.3)
    return query_loss(net, {name: start[name] + (there[name] - start[name]).detach() for name in start}, task)


def alfa(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    """As it starts: MAML. Its step sizes are in float32, which has no 0.3."""
    return query_loss(net, descend(net, start, task, moving, 2, 0.25), task)


def metal(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    """As it starts: MAML, since its learned loss starts at 0."""
    return maml(net, start, task, moving)


def imaml(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    return query_loss(net, descend(net, start, task, moving, 80, 0.1, penalty=4.0), task)


def ridge(net: Any, start: Params, task: Task, moving: list[str]) -> Tensor:
    """The head by the normal equations of the squared error, with ``ridge=1``."""
    z, q = (F.pad(functional_call(net, start, (x,), {"features": True}), (0, 1), value=1.0) for x in (task[0], task[2]))
    y = F.one_hot(task[1], 3).to(z)
    w = torch.linalg.solve(z.T @ z / len(z) + torch.eye(z.shape[1], dtype=z.dtype), z.T @ y / len(z))
    return F.cross_entropy(q @ w, task[3])


def few_shot(net: Any, start: Params, task: Task, moving: list[str]) -> Tensor:
    """A head from zero, by so many gradient steps on the decayed cross-entropy that they have converged."""
    z = functional_call(net, start, (task[0],), {"features": True})
    w, b = torch.zeros(3, 6, dtype=z.dtype, requires_grad=True), torch.zeros(3, dtype=z.dtype, requires_grad=True)
    for _ in range(80):
        loss = F.cross_entropy(z @ w.T + b, task[1]) + 0.5 * (w.square().sum() + b.square().sum())
        of_w, of_b = torch.autograd.grad(loss, (w, b), create_graph=True)
        w, b = w - 0.5 * of_w, b - 0.5 * of_b
    return F.cross_entropy(functional_call(net, start, (task[2],), {"features": True}) @ w.T + b, task[3])


def proto_maml(net: Any, start: Params, task: Task, moving: list[str]) -> Tensor:
    """The head from prototypes; the inner gradients treat it as weights of its own."""
    z = functional_call(net, start, (task[0],), {"features": True})
    means = torch.stack([z[task[1] == label].mean(0) for label in range(3)])
    own = {name: value.clone() for name, value in start.items()}
    own |= {"head.weight": 2 * means, "head.bias": -(means**2).sum(1)}
    return query_loss(net, descend(net, own, task, moving, 2, 0.3), task)


def pooled(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    """No adaptation: all examples alike."""
    outputs = functional_call(net, start, (torch.cat([task[0], task[2]]),))
    return F.cross_entropy(outputs, torch.cat([task[1], task[3]]))


def prototypes(net: Any, start: Params, task: Task, moving: list[str]) -> Tensor:
    """The softmax of minus the squared distances to class means."""
    z, q = (functional_call(net, start, (x,), {"features": True}) for x in (task[0], task[2]))
    means = torch.stack([z[task[1] == label].mean(0) for label in range(3)])
    return F.cross_entropy(-(q[:, None] - means).square().sum(2), task[3])


def cosines(net: Any, start: Params, task: Task, moving: list[str]) -> Tensor:
    """No adaptation: ten times the cosines between features and the rows of the head."""
    features = functional_call(net, start, (torch.cat([task[0], task[2]]),), {"features": True})
    rows = start["head.weight"]
    lengths = features.square().sum(1).sqrt()[:, None] * rows.square().sum(1).sqrt()
    return F.cross_entropy(10 * features @ rows.T / lengths, torch.cat([task[1], task[3]]))


def reptile(net: nn.Module, start: Params, task: Task, moving: list[str]) -> Tensor:
    """Something whose gradient is the way back from the weights that all examples of a task have led to."""
    everything = torch.cat([task[0], task[2]]), torch.cat([task[1], task[3]]), task[2], task[3]
    there = descend(net, start, everything, moving, 2, 0.3)
    return sum(((start[name] * (start[name] - there[name]).detach()).sum() for name in moving), torch.zeros(()))


@dataclass(frozen=True)
class Algorithm:
    """An algorithm, and what it computes written out with nothing but ``torch.autograd.grad``.

    Attributes:
        kind: the module.
        options: its arguments, but for the network.
        loss: ``(network, weights, task, adapted names) -> query loss`` of one task, with its graph.
        adapts: how the names of the adapted tensors begin.
        error: the largest difference of gradients in float64.
    """

    kind: type[MetaModule]
    options: dict[str, Any]
    loss: Callable[[Any, Params, Task, list[str]], Tensor]
    adapts: str = ""
    error: float = 1e-9
    cheap: dict[str, Any] = field(default_factory=dict)

    def make(self, net: nn.Module, **options: Any) -> MetaModule:
        return self.kind(net, **{**self.options, **options})  # type: ignore[arg-type]

    def make_cheap(self, net: nn.Module, **options: Any) -> MetaModule:
        """With so few iterations that a run of the Trainer is quick."""
        return self.make(net, **{**self.cheap, **options})

    def meta_gradient(self, net: nn.Module, episode: Episode) -> dict[str, Tensor]:
        """By the trainable tensors of the network, of the mean over tasks."""
        (xs, ys), (xq, yq) = episode
        start = {
            name: value if value.requires_grad else value.clone().requires_grad_()
            for name, value in net.named_parameters()
        }
        outer = {name: value for name, value in net.named_parameters() if value.requires_grad}
        moving = [name for name in outer if name.startswith(self.adapts)]
        losses = [self.loss(net, start, task, moving) for task in zip(xs, ys, xq, yq, strict=True)]
        grads = torch.autograd.grad(
            torch.stack(losses).mean(), list(outer.values()), allow_unused=True, materialize_grads=True
        )
        return {f"backbone.{name}": grad for name, grad in zip(outer, grads, strict=True)}


TWO = {"inner_steps": 2, "inner_lr": 0.3}
FEW = {"inner_steps": 3, "inner_lr": 0.1}
ALGORITHMS: dict[str, Algorithm] = {
    "maml": Algorithm(MAML, TWO, maml),
    "fomaml": Algorithm(MAML, {**TWO, "first_order": True}, fomaml),
    "alfa": Algorithm(ALFA, {"inner_steps": 2, "inner_lr": 0.25}, alfa),
    "metal": Algorithm(MeTAL, TWO, metal),
    "boil": Algorithm(MAML, {**TWO, "adapts": "body"}, maml, "body"),
    "proto_maml": Algorithm(MAML, {**TWO, "adapter": PrototypeHead()}, proto_maml),
    "anil": Algorithm(ANIL, TWO, maml, "head"),
    "ridge": Algorithm(ANIL, {"head_solver": "ridge"}, ridge, "head"),
    "imaml": Algorithm(
        IMAML, {"inner_steps": 80, "inner_lr": 0.1, "lam": 4.0, "cg_steps": 40}, imaml,
        cheap={**FEW, "cg_steps": 3, "linear_solver": "auto"},
    ),
    "few_shot": Algorithm(
        BilevelFewShot, {"l2": 1.0, "inner_steps": 80, "inner_lr": 0.5, "linear_steps": 30}, few_shot, "head", cheap=FEW
    ),
    "pooled": Algorithm(Pooled, TWO, pooled),
    "protonet": Algorithm(ProtoNet, {}, prototypes, "head"),
    "baseline": Algorithm(Baseline, {}, pooled, "head"),
    "cosine": Algorithm(Baseline, {"classifier": "cosine"}, cosines, "head"),
    "reptile": Algorithm(Reptile, TWO, reptile),
}  # fmt: skip
KINDS: list[type[MetaModule]] = list(dict.fromkeys(algorithm.kind for algorithm in ALGORITHMS.values()))
"""The classes of the list, once each."""
