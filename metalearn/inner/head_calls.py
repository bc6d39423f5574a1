"""Whether a network's output is what its head makes of one tensor, so that the head alone stands for all inner steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.generators import drawing_from, read_generators
from metalearn.inner.rules import Params

__all__ = ["HeadCalls", "find_coupling", "watch_features", "watching"]

Run = Callable[[nn.Module, Params, tuple[Any, ...]], Any]
"""``run(module, params, inputs)``: a forward pass at other parameters."""


@dataclass
class HeadCalls:
    """What a submodule is called with, and what it gives.

    Attributes:
        inputs: of each call, the positional arguments and the keywords.
        outputs: of each call.
        writes: whether a call changed its first argument in place.
        state: the random generators before the last call.
        kept: the values of the last call's input and output, which a network may change later.
    """

    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    writes: bool = False
    state: Any = None
    kept: list[Tensor] = field(default_factory=list)

    def find_fault(self, result: Any) -> str | None:
        """A clause that says why ``result`` is not what one call gave for one tensor, or ``None``."""
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            return f"it is called {len(self.inputs)} times in a forward pass"
        (args, keywords), output = self.inputs[0], self.outputs[0]
        if keywords or len(args) != 1 or not isinstance(args[0], Tensor):
            return "it is called with more than one tensor or with keywords"
        if output is not result or not isinstance(result, Tensor):
            return "the network's output is not its output: something follows it"
        return None


@contextlib.contextmanager
def watching(head: nn.Module, copies: bool = False, closely: bool = False) -> Iterator[HeadCalls]:
    """Note the calls of ``head``.

    Args:
        head: a submodule.
        copies: keep a copy of its input, which it writes to.
        closely: keep values and random generators as well.
    """
    calls = HeadCalls()

    def enter(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if copies:
            args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        calls.inputs.append((args, keywords))
        if closely and args and isinstance(args[0], Tensor):
            calls.state = read_generators(args[0])
            calls.kept = [args[0].detach().clone()]

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.outputs.append(output)
        if closely and calls.kept and isinstance(output, Tensor):
            calls.writes |= not same(calls.inputs[-1][0][0], calls.kept[0])
            calls.kept.append(output.detach().clone())

    first = head.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    last = head.register_forward_hook(leave)
    try:
        yield calls
    finally:
        first.remove()
        last.remove()


def watch_features(network: nn.Module, layer: str, rows: int, run: Callable[[], object]) -> Tensor:
    """What the submodule ``layer`` is called with in a forward pass, ``[rows, F]``.

    Raises:
        ConfigError: it is not called once with a row for each example.
    """
    with watching(network.get_submodule(layer)) as calls:
        run()
    args = calls.inputs[0][0] if len(calls.inputs) == 1 else ()
    if not args or not isinstance(args[0], Tensor) or args[0].ndim != 2 or len(args[0]) != rows:
        raise ConfigError(
            f"adapter starts the head {layer!r} from its features [examples, features], but it is not called once with such a "
            "tensor; name another layer, or leave the adapter out"
        )
    return args[0]


def same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Whether two tensors are alike, relative to the largest value."""
    if a.shape != b.shape:
        return False
    scale = float(b.detach().abs().nan_to_num(posinf=0.0).amax()) if tolerance and b.numel() else 0.0
    return torch.allclose(a.detach(), b.detach(), rtol=0.0, atol=tolerance * scale, equal_nan=True)


def find_coupling(
    network: nn.Module, head: nn.Module, own: dict[str, str], params: Params, x: Tensor, run: Run
) -> tuple[str | None, bool]:
    """Try the network on ``x``.

    Args:
        network: in the modes in question.
        head: its submodule that adapts.
        own: for each name of an adapted tensor in the network, its name in the head.
        params: tensors by name in the network.
        x: ``[n, ...]``.
        run: makes a forward pass.

    Returns:
        a clause that says why the head alone does not tell how the network's output depends on the head's tensors, or ``None``
        if it does; and whether the head writes to its input.
    """
    outside = _find_shared(network, head)
    if outside is not None:
        return outside, False
    trial = _Trial(head, own, params, run)
    start = read_generators(x)
    with torch.inference_mode(False), torch.enable_grad():
        with watching(head, closely=True) as calls, drawing_from(start):
            result = run(network, params, (x,))
        fault = calls.find_fault(result) or trial.find_change(calls, result)
        if fault is not None:
            return fault, False
        with drawing_from(start), torch.no_grad():
            run(network, params, (x[:1].expand_as(x),))  # if the network tells its head something, now something else
        fault = trial.find_other_input(calls, result)
        if fault is None:
            # what depends on the head's values without a gradient shows when they are others
            moved = {name: value * 1.5 + 0.25 if name in own else value for name, value in params.items()}
            with watching(head, closely=True) as again, drawing_from(start), torch.no_grad():
                run(network, moved, (x,))
            if not again.kept or not same(again.kept[0], calls.kept[0], 1e-5):
                fault = "what it is called with depends on its own tensors"
    return fault, calls.writes


@dataclass(frozen=True)
class _Trial:
    """What :func:`find_coupling` tries; each method gives a clause that says what couples, or ``None``."""

    head: nn.Module
    own: dict[str, str]
    params: Params
    run: Run

    def find_change(self, calls: HeadCalls, result: Any) -> str | None:
        """What was changed around the head's call, or reaches its input from its own tensors."""
        value, *of_output = calls.kept
        if not of_output or not same(result, of_output[0]):
            return "its output is changed in place after it"
        features = calls.inputs[0][0][0]
        if not calls.writes and not same(features, value):
            return "its input is changed in place after it was called"
        params = self.params
        theirs = [params[name] for name in self.own if name in params and params[name].requires_grad]
        if not calls.writes and _reaches(features, theirs):
            return "what it is called with depends on its own tensors"
        return None

    def find_other_input(self, calls: HeadCalls, result: Any) -> str | None:
        """What the head reads beside the tensor that it was called with."""
        value, params = calls.kept[0], self.params
        with drawing_from(calls.state):
            leaf = value.clone().requires_grad_(value.is_floating_point())
            tensors = {inside: params[name] for name, inside in self.own.items() if name in params}
            alone = self.run(self.head, tensors, (leaf * 1,))  # a leaf must not be written to
        if not isinstance(alone, Tensor) or not same(alone, result, 1e-5):
            return "it depends on more than what it is called with"
        others = [tensor for name, tensor in params.items() if name not in self.own and tensor.requires_grad]
        return "it reads tensors of other layers" if _reaches(alone, others) else None


def _reaches(output: Tensor, tensors: list[Tensor]) -> bool:
    if not output.requires_grad or not tensors:
        return False
    grads = torch.autograd.grad(output.sum(), tensors, retain_graph=True, allow_unused=True)
    return any(grad is not None for grad in grads)


def _find_shared(network: nn.Module, head: nn.Module) -> str | None:
    inside = set(head.modules())
    tensors = {id(tensor) for tensor in (*head.parameters(), *head.buffers())}
    for name, layer in network.named_modules():
        if layer in inside:
            continue
        for part, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            if id(tensor) in tensors:
                return f"it shares {f'{name}.{part}'.lstrip('.')} with another layer"
    return None
