"""Whether gradients reach what they should: a tensor that autograd does not see would be adapted by 0, in silence."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.adapters.base import PREFIX
from metalearn.inner.ambient import own_kernels
from metalearn.inner.graph import walk_graph
from metalearn.inner.learner import Learner
from metalearn.inner.network.layers import name_layers
from metalearn.inner.network.structure import Mode
from metalearn.inner.rules import Params

__all__ = ["check_reach"]

TRIES = 16
"""Sets that a tensor may be out of reach on, each with its own branches and random numbers, before it counts as unreached."""

ROWS = 1 << 16
"""Values of a set of noise, where that is more than the task's own."""


def check_reach(learner: Learner, sets: list[Tensor], mode: Mode) -> list[str]:
    """Try the network as it is given.

    Args:
        learner: says which tensors adapt.
        sets: examples ``[n, ...]`` of a task each.
        mode: of its layers. In ``"evaluating"`` a tensor may be out of reach, such as those of auxiliary heads.

    Returns:
        the trainable tensors out of reach that do not adapt.

    Raises:
        ConfigError: it uses reentrant activation checkpointing, or an adapted tensor is out of reach.
    """
    params, moving = learner.outer(), learner.moving()
    # of an adapter only what moves has to be reached by this pass, which is before the start of a task
    names = [name for name in params if name in moving or not name.startswith(PREFIX)]
    unreached = names if mode != "evaluating" else []
    device = sets[0].device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        learner.structure.undisturbed(),
        own_kernels(),
        torch.enable_grad(),
        learner.as_given().running(mode) as running,
    ):
        for x in itertools.islice(_variants(sets), TRIES):
            outputs = _run(running, params, x)
            if not isinstance(outputs, Tensor):
                return []
            unreached = _without_gradient(outputs, params, unreached)
            if not unreached:
                return []
        for name in unreached:
            if name in moving:
                moved = {**params, name: params[name].detach() * 1.5 + 0.25}
                raise _refusal(name, any(_differs(running, params, moved, x) for x in sets[:2]))
    return unreached


def _refusal(name: str, depends: bool) -> ConfigError:
    if depends:
        return ConfigError(
            f"{name} adapts, and the backbone's outputs depend on it, but no gradient reaches it (forward detaches it, or runs "
            "under no_grad); let gradients through, or freeze it with requires_grad_(False)"
        )
    return ConfigError(
        f"{name} adapts, but the backbone's outputs do not depend on it, so that its gradient would always be 0; use it in "
        "forward, or freeze it with requires_grad_(False)"
    )


def _variants(sets: list[Tensor]) -> Iterator[Tensor]:
    """The sets, then noise like them, wider and wider, so that examples take every branch that there is."""
    yield from sets[: TRIES // 4]
    like = sets[0]
    for width in itertools.cycle((1.0, 3.0, 10.0)) if like.is_floating_point() else ():
        rows = max(len(like), min(64, ROWS // max(like[0].numel(), 1)))
        spread = width * (1 + like.float().std(correction=0))
        noise = torch.randn(rows, *like.shape[1:], device=like.device)
        yield (like.float().mean() + spread * noise).to(like.dtype)
    yield from itertools.cycle(sets)


def _run(learner: Learner, params: Params, x: Tensor) -> Any:
    """A forward pass with its graph, which must hold no reentrant checkpoint; ``None`` where it fails, as it will again."""
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outputs = learner.outputs(params, x)
        except (RuntimeError, ValueError, TypeError):
            return None
    where = _find_reentrant(outputs, learner.backbone)
    if where is None and any(
        "None of the inputs have requires_grad=True" in str(warning.message) for warning in caught
    ):
        where = "a part"
    if where is not None:
        raise ConfigError(
            f"the backbone checkpoints {where} with use_reentrant=True, which gives the gradients of an inner loop no way "
            "through; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    return outputs


def _find_reentrant(outputs: Tensor, network: nn.Module) -> str | None:
    names = name_layers(network)
    for node in walk_graph(outputs.grad_fn):
        if node.name() == "CheckpointFunctionBackward":
            function = getattr(node, "run_function", None)
            layer = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
            return f"layer {names[id(layer)]!r}" if id(layer) in names else "a part"
    return None


def _without_gradient(outputs: Tensor, params: Params, names: list[str]) -> list[str]:
    if not names or not outputs.requires_grad:
        return names
    tensors = [params[name] for name in names]
    grads = torch.autograd.grad(outputs.sum(), tensors, retain_graph=True, allow_unused=True)
    return [name for name, grad in zip(names, grads, strict=True) if grad is None]


@torch.no_grad()
def _differs(learner: Learner, params: Params, moved: Params, x: Tensor) -> bool:
    torch.manual_seed(0)
    before = learner.outputs(params, x)
    torch.manual_seed(0)
    return not torch.allclose(learner.outputs(moved, x), before, rtol=1e-6, atol=0.0, equal_nan=True)
