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

from metalearn.inner.kernels import OwnOperators
from metalearn.inner.norm import NormPolicy, TaskBatchNorm, statistics
from metalearn.inner.rules import Params

__all__ = ["Learner", "evaluating"]


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


def stateful_buffers(module: nn.Module) -> list[str]:
    """The names of the buffers that a forward pass may write: all but those of :class:`TaskBatchNorm`."""
    owned = {
        f"{name}.{buffer}".lstrip(".")
        for name, layer in module.named_modules()
        if isinstance(layer, TaskBatchNorm)
        for buffer, _ in layer.named_buffers()
    }
    return [name for name, _ in module.named_buffers() if name not in owned]


class Learner:
    """Every parameter of the network adapts (MAML).

    Attributes:
        encodes: whether :meth:`encode` computes anything.

    Args:
        backbone: the network; its batch normalisation is already a :class:`TaskBatchNorm`.
        norm: the statistics policy; ``"support"`` passes the support set along with every query set.
    """

    encodes = False

    def __init__(self, backbone: nn.Module, norm: NormPolicy) -> None:
        self.backbone = backbone
        self.norm = norm
        self._buffers = stateful_buffers(backbone)
        self._moved: frozenset[str] = frozenset()

    def outer(self) -> Params:
        """What the meta-gradient is taken with respect to: all tensors that are trainable now, and those of :meth:`moving`
        that are not, as leaves of their own, whose gradient goes nowhere."""
        moving = self.moving()
        return {
            name: value if value.requires_grad else value.detach().requires_grad_()
            for name, value in self.backbone.named_parameters()
            if value.requires_grad or name in moving
        }

    def moving(self) -> Params:
        """What the inner loop moves now: the tensors that adapt and are trainable; if none of them is (``freeze()``), those
        that were when this was last asked, or else all of them, since adapting a network needs no training of it."""
        able = {name: value for name, value in self.able().items() if value.is_floating_point() or value.is_complex()}
        trainable = {name: value for name, value in able.items() if value.requires_grad}
        if trainable:
            self._moved = frozenset(trainable)
            return trainable
        return {name: value for name, value in able.items() if name in self._moved} or able

    def able(self) -> Params:
        """Every tensor that adapts by the algorithm, trainable or frozen."""
        return {name: value for name, value in self.backbone.named_parameters() if self.adapts(name)}

    def over(self, backbone: nn.Module) -> Learner:
        """The same strategy over another network of the same structure."""
        learner = self._over(backbone)
        learner._moved = self._moved
        return learner

    def _over(self, backbone: nn.Module) -> Learner:
        return Learner(backbone, self.norm)

    def specialised(self, params: Params, x: Tensor) -> Learner:
        """The same strategy in the cheapest form that is exact for this network in its present modes: here itself.

        Args:
            params: the outer tensors by name.
            x: examples ``[n, ...]`` of one task to try the network on.
        """
        return self

    def adapts(self, name: str) -> bool:
        """Whether the inner loop moves the tensor of this name."""
        return True

    @property
    def note(self) -> str | None:
        """A line to be said once about how it is run."""
        return None

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
