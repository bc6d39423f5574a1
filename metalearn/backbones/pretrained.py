"""Networks of other libraries: their last linear layer becomes the head, and weights come from a file on this machine."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metalearn.errors import CheckpointError, ConfigError, ShapeError, first_line

__all__ = ["HeadedNetwork", "load_weights", "log_head", "read_weights", "repeat_grey", "take_head"]

log = logging.getLogger("lightning.pytorch.backbones")  # below Lightning's, which shows what is said of a run

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Entries in which training scripts put the weights of a network."""
SHOWN = 3
"""Names of tensors that a message lists."""
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError)
"""What torch raises for a file that is no plain file of weights."""


def take_head(network: nn.Module, outputs: int, name: str) -> tuple[str, nn.Linear]:
    """Take the last linear layer with so many outputs out of a network, which then gives that layer's inputs.

    Args:
        network: is changed; an identity takes the layer's place.
        outputs: of the network.
        name: what messages call it.

    Returns:
        the layer's name in the network, and the layer.

    Raises:
        ConfigError: the network has no such layer.
    """
    linear = [
        place
        for place, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == outputs
    ]
    if not linear:
        raise ConfigError(
            f"name is {name!r}, but that network does not end in a linear layer, which few-shot tasks need as a head; use "
            "another, such as resnet18, or wrap it in a module of your own"
        )
    head = network.get_submodule(linear[-1])
    assert isinstance(head, nn.Linear)
    network.set_submodule(linear[-1], nn.Identity())
    return linear[-1], head


class HeadedNetwork(nn.Module):
    """A network of images without its last linear layer, and that layer as its head.

    Args:
        network: as the library builds it, with ``ways`` outputs; it is changed.
        name: what the library calls it.
        ways: how many outputs there are.
        weights: a file of pretrained weights; ``None`` for those that the network has.
        image_size: the size of images that it was built for; ``None`` for the library's own.

    Raises:
        ConfigError: it has no linear head.
        CheckpointError: the weights are missing, or of another network.
    """

    def __init__(self, network: nn.Module, name: str, ways: int, weights: str | None, image_size: int | None) -> None:
        super().__init__()
        place, self.head = take_head(network, ways, name)
        if weights is not None:
            load_weights(network, read_weights(weights), weights, place)
        self.name, self.network = name, network
        log_head(name, place, self.head)
        # a checkpoint holds the weights themselves
        self.init_args = {"name": name, "ways": ways, "weights": None, "image_size": image_size}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.network(repeat_grey(x, 3, self.name)))
        return logits


def log_head(name: str, place: str, head: nn.Linear) -> None:
    """Say which layer is the head, unless a network is only laid out."""
    if not head.weight.is_meta:
        features, outputs = head.in_features, head.out_features
        log.info("%s: the head is its layer %s, with %d features and %d outputs", name, place, features, outputs)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote; nothing is unpickled.

    Raises:
        CheckpointError: the file is missing, cannot be read, or holds more than tensors by name.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"weights {file} is no file; give the path of a .safetensors or .pt file on this machine")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"weights {file} cannot be read as plain tensors ({first_line(error)}); save them with "
            "torch.save(network.state_dict(), path)"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"weights {file} holds a {type(content).__name__} that is more than tensors by name; save "
            "network.state_dict() alone"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, head: str | None = None) -> None:
    """Put the weights of a file into a network.

    Args:
        network: without its head.
        weights: by name.
        path: of the file, for messages.
        head: the layer of the file's network whose weights are left out.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or not finite.
    """
    left = {name for name in weights if head is not None and name.startswith(f"{head}.")}
    own = network.state_dict()
    names = set(weights) - left
    missing, unexpected = sorted(own.keys() - names), sorted(names - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"weights {path} is of another network: {_list(missing, 'missing')}, {_list(unexpected, 'unexpected')}; use the "
            "file of this network, or the name of the file's network"
        )
    for name in sorted(names):
        if own[name].shape != weights[name].shape:
            raise CheckpointError(
                f"weights {path} has {name} of shape {list(weights[name].shape)}, but this network's is "
                f"{list(own[name].shape)}; build it with the same sizes"
            )
        if not bool(weights[name].isfinite().all()):
            raise CheckpointError(f"weights {path} has values in {name} that are not finite; use another file")
    network.load_state_dict({name: weights[name] for name in names})
    note = f"; those of its {len(left)} head tensors ({head}) are left out" if left else ""
    log.info("weights %s: %d tensors are read%s", path, len(names), note)


def repeat_grey(x: Tensor, channels: int, name: str) -> Tensor:
    """Images ``[n, C, H, W]`` with the channels that a network takes; a grey image is repeated.

    Raises:
        ShapeError: ``x`` holds no images, or they have other channels.
    """
    if x.ndim != 4:
        raise ShapeError(
            f"x has shape {list(x.shape)}, but {name} takes images [n, {channels}, height, width]; reshape them, or use an MLP"
        )
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    if x.shape[1] != channels:
        raise ShapeError(
            f"x has shape {list(x.shape)}, but {name} takes {channels} channels, or 1, which is repeated; read images with "
            f"channels={channels}"
        )
    return x


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(
            f"weights {file} cannot be read ({first_line(error)}); it is truncated or no .safetensors file: fetch it again"
        ) from error
    return tensors


def _list(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    shown = f" ({', '.join(names[:SHOWN])}{more})" if names else ""
    return f"{len(names)} tensors are {what}{shown}"
