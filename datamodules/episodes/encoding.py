"""What a frozen encoder makes of examples, and what tells two encoders apart."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, DataError, MetalearnError, first_line

__all__ = ["Encoder"]

HEAD = "head"
NOT_TAKEN = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)
"""What torch and networks raise for inputs that they cannot take."""


class Encoder:
    """A network of the caller's, run in ``eval()`` without gradients; it is left as it was.

    Args:
        network: the caller's.
        layer: the submodule whose inputs are the features; ``None`` for ``head`` where there is one, else for the outputs.
        batch_size: how many examples are encoded at once.
        device: where.

    Raises:
        ConfigError: there is no such layer or device.
    """

    def __init__(self, network: nn.Module, layer: str | None, batch_size: int, device: str) -> None:
        names = dict(network.named_modules())
        if layer is not None and (layer not in names or not layer):
            children = ", ".join(name for name, _ in network.named_children()) or "none"
            raise ConfigError(
                f"layer is {layer!r}, but {type(network).__name__} has no submodule of that name (it has: {children}); name "
                "the layer whose inputs are the features"
            )
        try:
            self.device = torch.empty(0, device=torch.device(device)).device  # with its number
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ConfigError(f"device is {device!r}, but this machine has none such; use device='cpu'") from error
        self.network, self.batch_size = network, batch_size
        self._there: nn.Module | None = None
        self.layer = layer if layer is not None else HEAD if HEAD in names else None

    def measure(self, examples: Tensor) -> tuple[int, ...]:
        """The shape of an example's features."""
        return tuple(self.encode(examples).shape[1:])

    def encode(self, examples: Tensor) -> np.ndarray:
        """The features ``[n, F]`` or maps ``[n, C, H, W]``, float32 of examples ``[n, ...]``.

        Raises:
            ConfigError: the network cannot take them, or gives no features of each.
            DataError: a feature is not finite.
        """
        name = type(self.network).__name__
        with self._running() as network:
            try:
                features = self._run(network, examples.to(self.device))
            except MetalearnError:
                raise
            except NOT_TAKEN as error:
                reason = first_line(error)
                raise ConfigError(
                    f"encoder {name} cannot take the examples, of shape {list(examples.shape)} ({reason}); build it for them"
                ) from error
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(examples):
            what = f"shape {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise ConfigError(
                f"encoder {name} gives features of {what} for {len(examples)} examples, but each needs its own row; set layer to "
                "the submodule whose inputs are the features"
            )
        rows: np.ndarray = features.float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise DataError(f"encoder {name} gives features that are not finite; check its weights and the examples")
        return rows

    def checksum(self) -> str:
        """A checksum of the encoder's layers, of their arguments as they are printed, and of its weights as they are now."""
        self._there = None
        digest = hashlib.sha256(f"{type(self.network).__qualname__}\n{self.network!r}\n{self.layer}".encode())
        for name, value in self.network.state_dict().items():
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _run(self, network: nn.Module, examples: Tensor) -> Any:
        if self.layer is None:
            return network(examples)
        seen: list[Any] = []
        hook = network.get_submodule(self.layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            network(examples)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise ConfigError(
                f"layer is {self.layer!r}, but the encoder calls it {len(seen)} times; name a layer that is called once"
            )
        return seen[0]

    @contextlib.contextmanager
    def _running(self) -> Iterator[nn.Module]:
        """The network in ``eval()`` on the device: the caller's, with its modes put back afterwards, or a copy of it there."""
        network = self.network
        if {value.device for value in (*network.parameters(), *network.buffers())} - {self.device}:
            network = self._there = self._there or copy.deepcopy(network).to(self.device)
        modes = [(layer, layer.training) for layer in network.modules()]
        network.eval()
        try:
            with torch.no_grad():
                yield network
        finally:
            for layer, mode in modes:
                layer.training = mode
