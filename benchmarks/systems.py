"""The systems of the inner-loop benchmark: ours in its modes, and the peers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peers import (
    Params,
    Running,
    run_func_loop,
    run_func_vmap,
    run_func_vmap_by_hand,
    run_higher,
    run_learn2learn,
)
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from works import Work, network, noise, reduce

from metalearn import ANIL, MAML, Batch, Episode

__all__ = ["SYSTEMS", "Running", "System", "build", "reference_gradient"]


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        name: as printed.
        make: from work, network, episode and number of steps, what runs it.
        ours: whether it is ours, and gets our allocator settings.
        bf16: whether it runs under autocast to bf16.
        options: of our module.
        needs: a package.
    """

    name: str
    make: Callable[..., Running]
    ours: bool = False
    bf16: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""

    def why_not(self, work: Work) -> str:
        """Why the work has no row of this system, in a few words; nothing where it has one."""
        by_hand, stock = "by hand" in self.name, "stock" in self.name
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if by_hand and work.backbone == "lstm":
            return "the network has no normalisation"
        if work.order == 1 and self.options.get("memory", "store") != "store":
            return "a first-order loop keeps nothing"
        if self.options.get("memory") == "mixed" and work.algorithm == "anil":
            return "the head has little to keep"
        if stock and work.name == "50_steps":
            return "the same wrong gradient as with 5 steps"
        if self.bf16 and work.name == "50_steps":
            return "50 steps are measured in float32 alone"
        return ""


def build(system: System, work: Work, device: str, dtype: torch.dtype) -> Running:
    """A system ready to run; in float64, to compare gradients, on a smaller work."""
    exact = dtype == torch.float64
    work = reduce(work) if exact else work
    episode = Episode(*(Batch(_move(role.x, device, dtype), role.y.to(device)) for role in noise(work)))
    net = network(work).to(device, dtype)
    bf16 = system.bf16 and not exact
    with _surroundings(system, work, device, bf16):
        running = system.make(work, net, episode, work.steps, **system.options)

    def step() -> None:
        with _surroundings(system, work, device, bf16):
            running.step()

    def gradient() -> Params:
        with _surroundings(system, work, device, bf16):
            return running.gradient()

    return Running(step, gradient)


def reference_gradient(work: Work) -> Params:
    """By a loop written with torch.autograd.grad alone, in float64, on a smaller work."""
    work = reduce(work)
    net, episode = network(work).double(), noise(work)
    outer = dict(net.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    with _math_attention(work):
        for task in range(work.tasks):
            params = dict(outer)
            names = [name for name in params if work.algorithm == "maml" or name.startswith("head")]
            for _ in range(work.steps):
                logits = functional_call(net, params, (episode.support.x[task],))
                loss = F.cross_entropy(logits, episode.support.y[task])
                grads = torch.autograd.grad(loss, [params[name] for name in names], create_graph=work.order == 2)
                params |= {name: params[name] - work.lr * g for name, g in zip(names, grads, strict=True)}
            logits = functional_call(net, params, (episode.query.x[task],))
            total = total + F.cross_entropy(logits, episode.query.y[task])
        grads = torch.autograd.grad(total / work.tasks, list(outer.values()))
    return dict(zip(outer, grads, strict=True))


def _move(x: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


def _math_attention(work: Work) -> contextlib.AbstractContextManager[None]:
    """torch's fused attention has no second derivative, so that peers must ask for its other one."""
    attends = work.backbone == "transformer"
    return sdpa_kernel(SDPBackend.MATH) if attends else contextlib.nullcontext()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _surroundings(system: System, work: Work, device: str, bf16: bool) -> Iterator[None]:
    autocast = torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False)
    with autocast, contextlib.nullcontext() if system.ours else _math_attention(work):
        yield


def _ours(work: Work, net: nn.Module, episode: Episode, steps: int, **options: Any) -> Running:
    kind: Any = ANIL if work.algorithm == "anil" else MAML
    module = kind(net, inner_steps=steps, inner_lr=work.lr, first_order=work.order == 1, **options)
    module.to(episode.support.x.device)
    if module._runner.recorder is not None:
        module._runner.recorder.meetings = 1  # the warm-up of a benchmark is one step
    prefix = "backbone."

    def step() -> None:
        module.zero_grad()
        module.training_step(episode, 0).backward()

    def gradient() -> Params:
        if options.get("compile") == "steps":
            module.meta_gradient(episode)  # records
        return {name.removeprefix(prefix): value for name, value in module.meta_gradient(episode).items()}

    return Running(step, gradient)


SYSTEMS = [
    System("ours: auto", _ours, ours=True),
    System("ours: auto, remat", _ours, ours=True, options={"memory": "remat"}),
    System("ours: auto, mixed", _ours, ours=True, options={"memory": "mixed"}),
    System("ours: auto, bf16", _ours, ours=True, bf16=True),
    System("ours: sequential", _ours, ours=True, options={"execution": "sequential"}),
    System("ours: sequential, remat", _ours, ours=True, options={"execution": "sequential", "memory": "remat"}),
    System("ours: steps recorded", _ours, ours=True, options={"compile": "steps"}),
    System("ours: steps recorded, remat", _ours, ours=True, options={"compile": "steps", "memory": "remat"}),
    System(
        "ours: sequential, steps recorded, remat",
        _ours,
        ours=True,
        options={"execution": "sequential", "compile": "steps", "memory": "remat"},
    ),
    System("ours: steps recorded, bf16", _ours, ours=True, bf16=True, options={"compile": "steps"}),
    System("ours: compiled", _ours, ours=True, options={"compile": True}),
    System("ours: compiled, bf16", _ours, ours=True, bf16=True, options={"compile": True}),
    System("learn2learn 0.2.0", run_learn2learn, needs="learn2learn"),
    System("learn2learn 0.2.0, bf16", run_learn2learn, bf16=True, needs="learn2learn"),
    System("higher 0.2.1", run_higher, needs="higher"),
    System("torch.func loop", run_func_loop),
    System("torch.func vmap, stock layers", run_func_vmap),
    System("torch.func vmap, normalisation by hand", run_func_vmap_by_hand),
]
