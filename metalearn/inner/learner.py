"""What a task sees of a network: which tensors adapt, and how examples become logits.

A learner is stateless. It is the strategy "which parameters adapt" of an algorithm; the update rule, the order of the
meta-gradient and the execution over tasks are chosen beside it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.errors import ShapeError
from metalearn.inner.adapters.base import PREFIX, AdapterPart, Task
from metalearn.inner.ambient import recording, statistics
from metalearn.inner.head_calls import watch_features
from metalearn.inner.network.structure import Mode, Structure
from metalearn.inner.norm.calls import ForwardPass
from metalearn.inner.norm.policies import NormPolicy, Policy, Support, Transductive
from metalearn.inner.norm.task_norm import TaskNorm
from metalearn.inner.rules import Params
from metalearn.inner.tensors import Tensors, as_double

__all__ = ["Learner", "evaluating"]

Self = TypeVar("Self", bound="Learner")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run with every submodule in ``eval()``, then put each one's own mode back.

    Example:
        >>> import torch
        >>> from metalearn.inner import evaluating
        >>> layer = torch.nn.Dropout(0.5)
        >>> with evaluating(layer):
        ...     layer(torch.ones(3))
        tensor([1., 1., 1.])
        >>> layer.training
        True
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


class Learner:
    """Every parameter of the network adapts (MAML).

    Attributes:
        encodes: whether :meth:`encode` computes anything.
        by_support: why queries together need the support set too, which no file holds; ``None`` if they do not.

    Args:
        backbone: the caller's network, which stays as it is.
        norm: the statistics policy; ``"support"`` passes the support set along with every query set.
        adapter: tensors that an adapter adds to the network's, see :class:`~metalearn.inner.AdapterPart`.

    Attributes:
        backbone: the caller's network.
        adapter: as it was passed.
        structure: its layers.
        tensors: its tensors and those of the adapter, by name.
        policy: what batch normalisation normalises by; the only place that says so.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner import Learner, TaskNorm
        >>> network = MLP(outputs=5, inputs=8, hidden=[16])
        >>> class BodyLearner(Learner):
        ...     def adapts(self, name):
        ...         return not name.startswith("head.")
        >>> list(BodyLearner(network, TaskNorm(network, "transductive")).able())
        ['body.1.weight', 'body.1.bias']
    """

    encodes = False
    by_support: str | None = None

    def __init__(self, backbone: nn.Module, norm: TaskNorm, adapter: AdapterPart | None = None) -> None:
        self.backbone = backbone
        self.adapter = adapter
        self.tensors = Tensors(backbone, adapter)
        self.policy: Policy = norm.policy
        self.structure = Structure(backbone, norm.replace)
        self._as_given = self._in_double = self._evaluates = False
        self._worker, self._moved = 0, frozenset[str]()

    @property
    def norm(self) -> NormPolicy:
        """The name of the policy of batch normalisation."""
        return self.policy.name

    @property
    def network(self) -> nn.Module:
        """What is called. It is our copy of the network's layers, or the network itself."""
        return self.backbone if self._as_given else self.structure.own(self._worker)

    def outer(self) -> Params:
        """What the meta-gradient is taken with respect to.

        That is all tensors that are trainable now, and those of :meth:`moving` that are not, as leaves of their own, whose
        gradient goes nowhere.
        """
        moving = self.moving()
        tensors: Params = {
            name: value if value.requires_grad else value.detach().requires_grad_()
            for name, value in self.tensors.named()
            if (value.requires_grad and self.trains(name)) or name in moving
        }
        return (
            {name: as_double(value).requires_grad_() for name, value in tensors.items()} if self._in_double else tensors
        )

    def moving(self) -> Params:
        """What the inner loop moves now: the tensors that adapt and are trainable.

        If none of them is (``freeze()``), they are those that were when this was last asked, or else all of them, since adapting
        a network needs no training of it.
        """
        able = {name: value for name, value in self.able().items() if value.is_floating_point() or value.is_complex()}
        trainable = {name for name, value in able.items() if value.requires_grad}
        if trainable:
            self._moved = frozenset(trainable | self.tensors.starts().keys())
        return {name: value for name, value in able.items() if name in self._moved} or able

    def trains(self, name: str) -> bool:
        """Whether the outer loop trains the tensor of this name, unless it is frozen."""
        return self.adapter is None or self.adapter.trains_network or name.startswith(PREFIX) or self.adapts(name)

    def able(self) -> Params:
        """Every tensor that adapts by the algorithm, trainable or frozen; of one that starts anew in each task, one like it."""
        return {name: value for name, value in self.tensors.named() if self.adapts(name)} | self.tensors.starts()

    def for_worker(self: Self, worker: int) -> Self:
        """The same strategy over layers of a thread's own."""
        return self._varied(_worker=worker)

    def as_given(self: Self) -> Self:
        """The same strategy over the caller's network itself: one task at a time, in one thread."""
        return self._varied(_as_given=True)

    def in_double(self: Self) -> Self:
        """The same strategy with all tensors in float64."""
        return self._varied(_in_double=True)

    def with_batch_statistics(self: Self) -> Self:
        """The same strategy under the policy ``"transductive"``."""
        return self._varied(policy=Transductive())

    def with_support_statistics(self: Self) -> Self:
        """The same strategy under the policy ``"support"``."""
        return self._varied(policy=Support())

    def under(self: Self, policy: Policy) -> Self:
        """The same strategy under another policy of batch normalisation."""
        return self._varied(policy=policy)

    @property
    def widens(self) -> bool:
        """Whether it makes a head for any number of classes."""
        return self.adapter is not None and self.adapter.widens

    @property
    def needs_many_queries(self) -> bool:
        """Whether queries are normalised by their own statistics, which a single one has not."""
        return self.norm == "transductive" and any(isinstance(layer, _BatchNorm) for layer in self.backbone.modules())

    @contextlib.contextmanager
    def running(self: Self, mode: Mode = "as_it_is") -> Iterator[Self]:
        """The same strategy with every layer in this mode; layers that the caller has changed since are noticed."""
        self.structure.refresh()
        # a hook of a layer that our copy has another one for would not be called; statistics of steps need the copy
        as_given = self._as_given or (self.structure.hooked and self.norm != "per_step")
        with self.structure.modes(mode, as_given):
            evaluates = mode == "evaluating" or (mode == "as_it_is" and not self.backbone.training)
            yield self._varied(_evaluates=evaluates, _as_given=as_given)

    def _varied(self: Self, **changes: object) -> Self:
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other

    def specialised(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        """The same strategy in the cheapest form that is exact for this network in its present modes: here itself.

        Args:
            params: the outer tensors by name.
            x: examples ``[n, ...]`` of one task to try the network on.
            mode: of its layers.
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

    def predict(self, params: Params, x: Tensor, step: int = 0) -> Tensor:
        """Outputs ``[n, N]`` for examples ``[n, ...]`` that are not encoded, as the policy normalises all of them."""
        with statistics(step=step):
            return self._call(params, x)

    def _call(self, params: Params, x: Tensor) -> Tensor:
        return self.outputs(params, x)

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """The outputs of the whole network."""
        network = self.network
        if not self.structure.keeps_input.get(self._evaluates):
            x = x.clone()  # a network may write to its input, which is not its own
        with self._operators():
            output = self.structure.call(network, self._tensors(network, params), (x,))
        return self._one_tensor(output)

    def _one_tensor(self, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise ShapeError(
                f"the backbone {type(self.backbone).__name__} returns a {type(output).__name__}, but the loss needs one tensor "
                "of outputs [n, ...]; wrap it in a module that returns that tensor alone"
            )
        return output

    def begin(self, params: Params, support: Tensor, targets: Tensor, ways: int | None) -> Params:
        """The tensors that start anew in this task, where they start.

        Args:
            params: the outer tensors by name.
            support: the encoded support set.
            targets: of it.
            ways: the classes of the task; ``None`` for as many as the network has outputs.
        """
        if self.adapter is None:
            return {}
        read = self.tensors.reader(params, self._in_double)
        return self.adapter.begin(Task(read, partial(self.features, params, support), targets, ways))

    def features(self, params: Params, support: Tensor, layer: str) -> Tensor:
        """What the submodule ``layer`` is called with for the encoded support set, ``[n, F]``, before any inner step.

        Raises:
            ConfigError: it is not called once with a row for each example.
        """
        with recording(False):  # the pass of the first step is the one whose statistics are kept
            return watch_features(self.network, layer, len(support), partial(self.support_logits, params, support))

    def buffers(self) -> Params:
        """Copies of the buffers of the network as it is now."""
        return {name: value.detach().clone() for name, value in self.structure.buffers(self.network)}

    def _operators(self) -> ForwardPass:
        """What answers for batch normalisation and convolutions in a forward pass."""
        leaves_frozen = self.structure.frozen or not self._evaluates
        return ForwardPass(self.policy, leaves_frozen, self.structure.checkpoints)

    def _tensors(self, network: nn.Module, params: Params, within: str = "") -> Params:
        """All that a forward pass of the layer ``within`` needs.

        That is ``params``, buffers perhaps among them, and buffers of this call alone.
        """
        params = self.tensors.merge(params, self._in_double)
        # a layer that writes its buffers in forward (spectral norm, say) writes to copies: tasks must not see each other
        buffers = {name: value for name, value in self.buffers().items() if name.startswith(within)}
        if not self._in_double:
            return {**buffers, **params}
        buffers = {name: as_double(buffer) for name, buffer in buffers.items()}
        frozen = {name: as_double(value) for name, value in network.named_parameters() if name not in params}
        return {**frozen, **buffers, **params}
