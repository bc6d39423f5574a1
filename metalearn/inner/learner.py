"""What a task sees of a network: which tensors adapt, and how examples become logits.

A learner is stateless. It is the strategy "which parameters adapt" of an algorithm; the update rule, the order of the
meta-gradient and the execution over tasks are chosen beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.errors import ConfigError
from metalearn.inner.kernels import OwnOperators
from metalearn.inner.norm import NormPolicy, TaskBatchNorm, statistics
from metalearn.inner.rules import Params

__all__ = ["HeadLearner", "Learner", "evaluating"]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run with every submodule in ``eval()``, then put each one's own mode back."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _stateful_buffers(module: nn.Module) -> list[str]:
    owned = {
        f"{name}.{buffer}".lstrip(".")
        for name, layer in module.named_modules()
        if isinstance(layer, TaskBatchNorm)
        for buffer, _ in layer.named_buffers()
    }
    return [name for name, _ in module.named_buffers() if name not in owned]


class Learner:
    """Every parameter of the network adapts (MAML).

    Args:
        backbone: the network; its batch normalisation is already a :class:`TaskBatchNorm`.
        norm: the statistics policy; ``"support"`` passes the support set along with every query set.
    """

    def __init__(self, backbone: nn.Module, norm: NormPolicy) -> None:
        self.backbone = backbone
        self.norm = norm
        self._buffers = _stateful_buffers(backbone)

    def outer(self) -> Params:
        """All trainable tensors: what the meta-gradient is taken with respect to."""
        return {name: value for name, value in self.backbone.named_parameters() if value.requires_grad}

    def over(self, backbone: nn.Module) -> Learner:
        """The same strategy over another network of the same structure."""
        return Learner(backbone, self.norm)

    def adapts(self, name: str) -> bool:
        """Whether the inner loop moves the tensor of this name."""
        return True

    def encode(self, params: Params, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Compute once per task what no inner step changes: here nothing, so inputs come back as they are."""
        return support, query

    def support_logits(self, params: Params, support: Tensor, step: int = 0) -> Tensor:
        """Outputs for the encoded support set, ``[n, N]``, at weights with ``step`` inner steps behind them."""
        with statistics(step=step):
            return self._call(params, support)

    def query_logits(self, params: Params, support: Tensor, query: Tensor, step: int = 0) -> Tensor:
        """Outputs for the encoded query set, ``[n, N]``, normalised as the policy says."""
        if self.norm != "support":
            with statistics(step=step):
                return self._call(params, query)
        with statistics(rows=len(support)):
            return self._call(params, torch.cat([support, query]))[len(support) :]

    def _call(self, params: Params, x: Tensor) -> Tensor:
        return self._run(self.backbone, params, self._buffers, x)

    @staticmethod
    def _run(module: nn.Module, params: Params, buffers: list[str], x: Tensor) -> Tensor:
        # a layer that writes its buffers in forward (spectral norm, say) writes to copies: tasks must not see each other
        copies = {name: module.get_buffer(name).clone() for name in buffers}
        with OwnOperators():
            return functional_call(module, {**params, **copies}, (x,))


class HeadLearner(Learner):
    """Only the submodule ``head`` adapts; the features of the body are computed once per task (ANIL).

    Raises:
        ConfigError: the backbone has no submodule of that name, or the head has no parameters.
    """

    def __init__(self, backbone: nn.Module, norm: NormPolicy, head: str) -> None:
        super().__init__(backbone, norm)
        modules = dict(backbone.named_modules())
        if not head or head not in modules:
            names = ", ".join(name for name, _ in backbone.named_children()) or "none"
            raise ConfigError(
                f"head is {head!r}, but {type(backbone).__name__} has no submodule of that name (it has: {names}); "
                "name the layer that maps features to logits"
            )
        self.head = modules[head]
        self._prefix = head + "."
        if not any(value.requires_grad for value in self.head.parameters()):
            raise ConfigError(
                f"head is {head!r}, but that submodule has no trainable parameters to adapt; name the layer that maps "
                "features to logits"
            )
        self._head_buffers = _stateful_buffers(self.head)

    def over(self, backbone: nn.Module) -> Learner:
        return HeadLearner(backbone, self.norm, self._prefix[:-1])

    def adapts(self, name: str) -> bool:
        return name.startswith(self._prefix)

    def encode(self, params: Params, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the support set ``[n, F]`` and of the query set ``[m, F]``: a pass each, or one for both where
        they share their statistics."""
        if self.norm == "support":
            with statistics(rows=len(support)):
                both = self._features(params, torch.cat([support, query]))
            return both[: len(support)], both[len(support) :]
        with statistics():
            return self._features(params, support), self._features(params, query)

    def _features(self, params: Params, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            super()._call(params, x)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise ConfigError(
                f"head is {self._prefix[:-1]!r}, but the backbone's forward calls that submodule {len(seen)} times, and "
                "ANIL needs exactly once; name the layer that maps features to logits"
            )
        return seen[0]

    def _call(self, params: Params, x: Tensor) -> Tensor:
        own = {name.removeprefix(self._prefix): value for name, value in params.items() if self.adapts(name)}
        return self._run(self.head, own, self._head_buffers, x)
