"""Networks of torchvision by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from metalearn.backbones.pretrained import HeadedNetwork
from metalearn.checks import MOST_OF_A_WIDTH, check_whole, find_nearest
from metalearn.errors import ConfigError

__all__ = ["Torchvision"]

WITHOUT_BRANCHES = {"aux_logits": False, "init_weights": True}
FIXED: dict[str, dict[str, Any]] = {"googlenet": WITHOUT_BRANCHES, "inception_v3": WITHOUT_BRANCHES}
"""Arguments of networks that would give several outputs."""
SIZES = {"vit": "image_size", "maxvit": "input_size"}
"""The argument for the size of the images, by the first part of a network's name."""


class Torchvision(HeadedNetwork):
    """A network of torchvision by name, with its last linear layer as the head.

    Nothing is downloaded. That layer, such as ``fc`` in a ResNet, is called ``head`` here, and has ``ways`` outputs. Grey images
    are repeated to three channels.

    Args:
        name: what torchvision calls the network: ``resnet18``, ``mobilenet_v3_small``, ``vit_b_16`` and others.
        ways: how many outputs there are, ``N``.
        weights: a file of pretrained weights on this machine, ``.pth``, ``.pt`` or ``.safetensors``. Its head is left out.
            ``None`` for random weights. Take ``norm="running"`` with pretrained weights.
        image_size: how many pixels an image is high and wide, ``H = W``, where the network must know it, as ``vit_b_16``
            must; ``None`` for torchvision's own size.

    Attributes:
        network: torchvision's network without its last layer.
        head: that layer.

    Shape:
        ``[n, 3, H, W]`` or ``[n, 1, H, W]`` to ``[n, N]``.

    Raises:
        ConfigError: there is no such network, or it has no linear head.
        CheckpointError: the weights are missing, or of another network.

    Example:
        >>> import torch
        >>> from metalearn import ANIL, Torchvision
        >>> network = Torchvision("resnet18", ways=5)
        >>> network(torch.randn(2, 1, 32, 32)).shape
        torch.Size([2, 5])
        >>> ANIL(network, norm="running").backbone.head
        Linear(in_features=512, out_features=5, bias=True)
    """

    def __init__(
        self, name: str = "resnet18", ways: int = 5, weights: str | None = None, image_size: int | None = None
    ) -> None:
        check_whole("ways", ways, 1, 100_000)
        super().__init__(_build(name, ways, image_size), name, ways, weights, image_size)


def _build(name: str, ways: int, image_size: int | None) -> nn.Module:
    """The network of this name with random weights."""
    import torchvision  # slow to import, and not needed for the other networks

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = find_nearest(str(name), known) or ["resnet18"]
        raise ConfigError(
            f"name is {name!r}, but torchvision has no such network; use {' or '.join(near)} (all: "
            "torchvision.models.list_models())"
        )
    sizes: dict[str, int] = {}
    if image_size is not None:
        check_whole("image_size", image_size, 8, MOST_OF_A_WIDTH, "use 224")
        argument = SIZES.get(name.split("_")[0])
        if argument is None:
            raise ConfigError(f"image_size is {image_size}, but {name} takes images of any size; leave image_size out")
        sizes[argument] = image_size
    if "input_size" in sizes:
        sizes["input_size"] = (sizes["input_size"], sizes["input_size"])  # type: ignore[assignment]
    try:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=ways, **sizes, **FIXED.get(name, {})
        )
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ConfigError(
            f"image_size is {image_size}, but {name} cannot be built for it ({error}); use a multiple of 32, such as 224"
        ) from error
    return network
