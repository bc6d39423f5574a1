"""The structure that the inner loop runs: a copy of the network's layers over the network's own tensors.

The caller's network stays as it is. What has to differ from it differs in the copy: batch normalisation of one task, ``eval()``
during adaptation, a set of layers for every thread. The copy holds no tensor of its own. It is made when it is needed, and thrown
away when the network has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.inner.network.copier import Copier, Replace
from metalearn.inner.network.layers import is_hooked

__all__ = ["Mode", "Structure"]

Mode = Literal["as_it_is", "training", "evaluating"]
"""Of all layers: the caller's own, ``train()`` or ``eval()``."""


class Structure:
    """The layers of a network, as given and as our own copies of them.

    Args:
        network: the caller's; nothing of it is changed.
        replace: see :data:`Replace`.

    Attributes:
        version: grows when layers, parameters or hooks have come, gone or changed places.
        keeps_input: whether it leaves its input as it is, in training (``False``) and in ``eval()`` (``True``), as far as known.
        checkpoints: whether it packs what a forward pass saves for the backward pass, as activation checkpointing does.
        hooked: whether a layer had hooks when that was last looked at.
        frozen: whether it normalises by ``F.batch_norm`` with ``training=False`` in training too.
    """

    def __init__(self, network: nn.Module, replace: Replace) -> None:
        self.network = network
        self.version = 0
        self.frozen = self.hooked = False
        self.keeps_input: dict[bool, bool] = {}
        self.checkpoints = True  # until it is known that it does not
        self._replace = replace
        self._copies: list[tuple[nn.Module, list[tuple[nn.Module, nn.Module]]]] = []
        self._owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
        self._ties: dict[int, dict[str, list[str]]] = {}
        self._seen: tuple[list[Any], list[Any], list[Any]] | None = None
        self._mode: Mode = "as_it_is"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": [], "_owners": {}, "_ties": {}, "_seen": None}

    def own(self, worker: int = 0) -> nn.Module:
        """The copy for a thread."""
        while len(self._copies) <= worker:
            copier = Copier({id(layer): name for name, layer in self.network.named_modules()}, self._replace)
            root = copier.copy(self.network)
            pairs = [(layer, copier.made[id(layer)]) for layer in self.network.modules()]
            self._copies.append((root, pairs))
            self._set_modes(pairs)
        return self._copies[worker][0]

    def call(self, module: nn.Module, tensors: dict[str, Tensor], inputs: tuple[Any, ...]) -> Any:
        """A forward pass of the network, a copy or a layer of them with other tensors, by their first names in it.

        ``functional_call`` itself writes to a module that stands at two places twice, and then puts the first of these values
        back as the module's own.
        """
        if id(module) not in self._ties:
            self._ties[id(module)] = _find_ties(module)
        for name, others in self._ties[id(module)].items():
            if name in tensors:
                tensors |= dict.fromkeys(others, tensors[name])
        return functional_call(module, tensors, inputs, tie_weights=False)

    def buffers(self, network: nn.Module) -> list[tuple[str, Tensor]]:
        """The buffers of ``network``, which is the given one or a copy, as the given network holds them now."""
        if id(network) not in self._owners:
            places = [name.rpartition(".") for name, _ in network.named_buffers()]
            owners = {path: self.network.get_submodule(path) for path, _, _ in places}
            self._owners[id(network)] = [(f"{path}.{key}".lstrip("."), owners[path], key) for path, _, key in places]
        return [(name, getattr(owner, key)) for name, owner, key in self._owners[id(network)]]

    def refresh(self) -> None:
        """Notice what has changed in the network since the last call."""
        topology, attributes, held = self._look()
        if self._seen is not None and self._seen[:2] == (topology, attributes):
            return
        if self._seen is None or self._seen[0] != topology:
            self.version += 1
            self.checkpoints = True
            self.hooked = any(map(is_hooked, self.network.modules()))
        self._copies, self._owners, self._ties = [], {}, {}
        self._seen = topology, attributes, held

    @contextlib.contextmanager
    def modes(self, mode: Mode, as_given: bool = False) -> Iterator[None]:
        """Within this context every layer is in this mode: of the copies, or of the network itself, where it is put back.

        Only the flags are set: ``train()`` of a user's layer may do more than that.
        """
        self._mode = mode
        for _, pairs in self._copies:
            self._set_modes(pairs)
        before = [(layer, layer.training) for layer in self.network.modules()] if as_given else []
        for layer, _ in before:
            layer.training = _choose_mode(layer, mode)
        try:
            yield
        finally:
            for layer, training in before:
                layer.training = training
            self._mode = "as_it_is"

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put back what a forward pass has written in this context: attributes of the network's layers, and its buffers."""
        before = [(layer, dict(layer.__dict__)) for layer in self.network.modules()]
        buffers = [(value, value.detach().clone()) for value in self.network.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for value, kept in buffers:
                    if not torch.equal(value, kept):
                        value.copy_(kept)
            for layer, state in before:
                if layer.__dict__.keys() != state.keys() or any(layer.__dict__[key] is not state[key] for key in state):
                    layer.__dict__.clear()
                    layer.__dict__.update(state)

    def _look(self) -> tuple[list[Any], list[Any], list[Any]]:
        """What the layers are and hold, by identity: layers, parameters and whether there are hooks; all attributes; these."""
        topology: list[Any] = []
        attributes: list[Any] = []
        held: list[Any] = []
        for layer in self.network.modules():
            state = layer.__dict__
            values = [value for key, value in state.items() if key != "training"]
            parameters = list(state["_parameters"].values())
            topology.append((id(layer), type(layer), tuple(state["_modules"]), *map(id, parameters), is_hooked(layer)))
            attributes.append(tuple(map(id, values)))
            held += (layer, values, parameters)  # no other object may get their identity
        return topology, attributes, held

    def _set_modes(self, pairs: list[tuple[nn.Module, nn.Module]]) -> None:
        for layer, own in pairs:
            own.training = _choose_mode(own, self._mode, layer.training)


def _find_ties(module: nn.Module) -> dict[str, list[str]]:
    """For every tensor that layers share, by its first name, its names in the other layers."""
    first: dict[int, str] = {}
    others: dict[str, list[str]] = {}
    for path, layer in module.named_modules():  # each layer once
        for key, value in (*layer._parameters.items(), *layer._buffers.items()):
            if value is None:
                continue
            name = f"{path}.{key}" if path else key
            if id(value) in first:
                others.setdefault(first[id(value)], []).append(name)
            else:
                first[id(value)] = name
    return others


def _choose_mode(layer: nn.Module, mode: Mode, training: bool | None = None) -> bool:
    """Batch normalisation is always in training, for its policy says what it normalises by."""
    training = layer.training if training is None else training
    return isinstance(layer, _BatchNorm) or mode == "training" or (training and mode == "as_it_is")
