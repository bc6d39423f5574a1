"""Only a head adapts (ANIL): by passes of the whole network, or, where that is the same, of the head alone on fixed features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.adapters.base import PREFIX, AdapterPart
from metalearn.inner.ambient import own_kernels, statistics
from metalearn.inner.head_calls import find_coupling, watching
from metalearn.inner.learner import Learner
from metalearn.inner.moving_part import MovingPart
from metalearn.inner.network.structure import Mode
from metalearn.inner.norm.task_norm import TaskNorm
from metalearn.inner.parts import choose_head, get_head, spell_head
from metalearn.inner.rules import Params
from metalearn.inner.tensors import Tensors

__all__ = ["FeatureLearner", "HeadLearner"]


class HeadLearner(Learner):
    """The tensors of the submodule ``head`` adapt, and the whole network is run at every inner step: MAML restricted to them.

    Exact for any network: whatever follows the head is applied, the head may be called several times, and a tensor that it
    shares with other layers moves there too.

    Args:
        backbone: the caller's network, as for :class:`Learner`.
        norm: the statistics policy, as for :class:`Learner`.
        head: the name of the submodule; ``"head"`` for that, or else the last ``torch.nn.Linear``.
        needed_by: the argument that needs the head alone; ``None`` if passes of the whole network will do.
        part: the tensors that adapt, all of them within ``head``; ``None`` for all of that.
        adapter: as for :class:`Learner`; what it changes lies within ``head``.

    Attributes:
        head_name: the name of the submodule.
        coupling: a clause that says why the head alone would not do, as :meth:`specialised` found last; ``None`` if it does.

    Raises:
        ConfigError: the backbone has no submodule of that name, or the head has no parameters.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner import HeadLearner, TaskNorm
        >>> network = MLP(outputs=5, inputs=8)
        >>> list(HeadLearner(network, TaskNorm(network, "transductive"), head="head").able())
        ['head.weight', 'head.bias']
    """

    def __init__(
        self,
        backbone: nn.Module,
        norm: TaskNorm,
        head: str,
        needed_by: str | None = None,
        part: MovingPart | None = None,
        adapter: AdapterPart | None = None,
    ) -> None:
        super().__init__(backbone, norm, adapter)
        self.head_name = choose_head(backbone, head)
        self._chose = None if self.head_name == head else spell_head(self.head_name)
        self._needed_by = needed_by
        self._part = part
        self.coupling: str | None = None
        self._tried: dict[Mode, _Trial] = {}
        self._names = self._find_names()
        if not self._names:
            raise ConfigError(
                f"head is {head!r}, but that submodule has no trainable parameters to adapt; name the layer that maps "
                "features to logits"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tried": {}}  # is tried again where it is needed

    def able(self) -> Params:
        self._names = self._find_names()
        return super().able()

    def adapts(self, name: str) -> bool:
        return name in self._names

    def _find_names(self) -> frozenset[str]:
        return frozenset(self._own()) if self._part is None else self._part.names(self.backbone)

    def specialised(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        """A :class:`FeatureLearner` where trying the network on ``x`` shows that to be exact; else this learner.

        Raises:
            ConfigError: it is not, and an argument needs it.
        """
        key = self._fingerprint()
        if mode not in self._tried or self._tried[mode].key != key:
            structure = self.structure
            # how the network calls its head has nothing to do with what an adapter makes of their tensors
            plain = self._varied(adapter=None, tensors=Tensors(self.backbone, None))
            own = {name: value for name, value in params.items() if not name.startswith(PREFIX)}
            with structure.undisturbed(), own_kernels(), plain.as_given().running(mode) as running:
                coupling, writes = find_coupling(self.backbone, self._head(), self._own(), own, x, running._pass)
            kept = [*self.backbone.modules(), *self.backbone.parameters()]
            self._tried[mode] = _Trial(key, kept, coupling, None if coupling else FeatureLearner(self, writes))
        self.coupling = self._tried[mode].coupling
        if self.coupling is not None and self._needed_by is not None:
            raise ConfigError(
                f"{self._needed_by} needs a network whose output is that of its head {self.head_name!r} for one tensor of "
                f"features, but {self.coupling}; use ANIL with head_solver='gradient', which runs the whole network"
            )
        return self._tried[mode].alone or self

    @property
    def note(self) -> str | None:
        if self._part is not None:
            return self._part.note(self.backbone)
        lines = [self._chose] if self._chose else []
        if self.coupling is not None:
            lines.append(
                f"the whole network is run at every inner step, because of head {self.head_name!r}: {self.coupling}"
            )
        return "; ".join(lines) or None

    def _head(self) -> nn.Module:
        return get_head(self.backbone, self.head_name)

    def _own(self) -> dict[str, str]:
        """For each adapted tensor's name in the network, its name in the head."""
        inner = {id(value): name for name, value in self._head().named_parameters()}
        return {name: inner[id(value)] for name, value in self.backbone.named_parameters() if id(value) in inner}

    def _head_names(self) -> dict[str, str]:
        return self._own()

    def _pass(self, module: nn.Module, params: Params, inputs: tuple[Any, ...]) -> Any:
        """A forward pass of the network, or of its head at tensors by their names in it."""
        if module is self.network:
            tensors, inputs = self._tensors(module, params), tuple(x.clone() for x in inputs)
        else:
            tensors = {**self._head_tensors({}), **params}
        with self._operators():
            return self.structure.call(module, tensors, inputs)

    def _head_tensors(self, params: Params) -> Params:
        """What a pass of the head needs, by names in it, from tensors by names in the network."""
        prefix = self.head_name + "."
        names = self._head_names()
        tensors = self._tensors(self.network, params, prefix)
        return {
            names.get(name, name.removeprefix(prefix)): value
            for name, value in tensors.items()
            if name in names or name.startswith(prefix)
        }

    def _fingerprint(self) -> tuple[Any, ...]:
        layers = tuple((id(layer), layer.training) for layer in self.backbone.modules())
        return layers, tuple((id(value), value.requires_grad) for value in self.backbone.parameters())


class _Trial(NamedTuple):
    """What a trial of the network has found.

    Attributes:
        key: the network that was tried, by identities.
        kept: what they are of, so that no other object takes them.
        coupling: see :class:`HeadLearner`.
        alone: runs the head alone, where that will do.
    """

    key: tuple[Any, ...]
    kept: list[Any]
    coupling: str | None
    alone: FeatureLearner | None


class FeatureLearner(HeadLearner):
    """The features of the body are computed once per task, and the inner loop runs the head alone.

    Args:
        learner: for a network whose output is the output of its head, which it calls once, with one tensor.
        writes: whether the head writes to its input, which is then copied for each pass.

    Example:
        >>> import torch
        >>> from metalearn import MLP
        >>> from metalearn.inner import FeatureLearner, HeadLearner, TaskNorm
        >>> network = MLP(outputs=5, inputs=8)
        >>> learner = HeadLearner(network, TaskNorm(network, "transductive"), head="head")
        >>> alone = learner.specialised(dict(network.named_parameters()), torch.randn(4, 8), "as_it_is")
        >>> isinstance(alone, FeatureLearner)
        True
    """

    encodes = True

    def __init__(self, learner: HeadLearner, writes: bool = False) -> None:
        self.__dict__.update(learner.__dict__)
        self._writes = writes
        self._inner = self._own()
        self._names = self._find_names()

    def able(self) -> Params:
        return Learner.able(self)

    def specialised(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        return self

    def encode(self, params: Params, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the support set ``[n, F]`` and of the query set ``[m, F]``.

        They take a pass each, or one for both where they share their statistics.
        """
        if self.norm == "support":
            with statistics(rows=len(support)):
                both = self._features(params, torch.cat([support, query]))
            return both[: len(support)], both[len(support) :]
        with statistics():
            return self._features(params, support), self._features(params, query)

    def predict(self, params: Params, x: Tensor, step: int = 0) -> Tensor:
        with statistics():
            features = self._features(params, x)
        return super().predict(params, features, step)

    def features(self, params: Params, support: Tensor, layer: str) -> Tensor:
        return support if layer == self.head_name else super().features(params, support, layer)

    def _features(self, params: Params, x: Tensor) -> Tensor:
        with watching(self.network.get_submodule(self.head_name), copies=self._writes) as calls:
            result = self.outputs(params, x)
        fault = calls.find_fault(result)
        if fault is not None:
            raise ConfigError(
                f"head is {self.head_name!r}, whose output was the network's output when it was tried, but for some examples "
                f"{fault}; let forward take the same way for all examples"
            )
        features: Tensor = calls.inputs[0][0][0]
        return features

    def _call(self, params: Params, x: Tensor) -> Tensor:
        head = self.network.get_submodule(self.head_name)
        with self._operators():
            logits: Tensor = self.structure.call(head, self._head_tensors(params), (x.clone() if self._writes else x,))
        return logits

    def _head_names(self) -> dict[str, str]:
        return self._inner
