"""Networks of timm by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from metalearn.backbones.pretrained import HeadedNetwork
from metalearn.checks import MOST_OF_A_WIDTH, check_whole, find_nearest
from metalearn.errors import ConfigError

__all__ = ["Timm"]


class Timm(HeadedNetwork):
    """A network of timm by name, with its last linear layer as the head.

    It needs ``pip install "metalearn-lightning[timm]"``. Nothing is downloaded. The last layer is called ``head`` here, and has
    ``ways`` outputs. Grey images are repeated to three channels.

    Args:
        name: what timm calls the network: ``resnet10t``, ``convnext_atto``, ``vit_tiny_patch16_224`` and a thousand others.
        ways: how many outputs there are, ``N``.
        weights: a file of pretrained weights on this machine, ``.safetensors``, ``.pth`` or ``.pt``. Its head is left out.
            ``None`` for random weights. Take ``norm="running"`` with pretrained weights.
        image_size: how many pixels an image is high and wide, ``H = W``, where the network must know it, as vision
            transformers must; ``None`` for timm's own size.

    Attributes:
        network: timm's network without its last layer.
        head: that layer.

    Shape:
        ``[n, 3, H, W]`` or ``[n, 1, H, W]`` to ``[n, N]``.

    Raises:
        ConfigError: timm is not installed, has no such network, or it has no linear head.
        CheckpointError: the weights are missing, or of another network.

    Example:
        >>> import torch
        >>> from metalearn import ANIL, Timm
        >>> network = Timm("resnet10t", ways=5)
        >>> network(torch.randn(2, 1, 32, 32)).shape
        torch.Size([2, 5])
        >>> ANIL(network, norm="running").backbone.head
        Linear(in_features=512, out_features=5, bias=True)
    """

    def __init__(
        self, name: str = "resnet10t", ways: int = 5, weights: str | None = None, image_size: int | None = None
    ) -> None:
        check_whole("ways", ways, 1, 100_000)
        super().__init__(_build(name, ways, image_size), name, ways, weights, image_size)


def _build(name: str, ways: int, image_size: int | None) -> nn.Module:
    """The network of this name with random weights."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            'Timm needs timm, which is not installed; run: pip install "metalearn-lightning[timm]"'
        ) from error
    known = timm.list_models()
    if name not in known:
        near = find_nearest(str(name), known) or ["resnet10t"]
        raise ConfigError(
            f"name is {name!r}, but timm has no such network; use {' or '.join(near)} (all: timm.list_models())"
        )
    sizes: dict[str, Any] = {}
    if image_size is not None:
        check_whole("image_size", image_size, 8, MOST_OF_A_WIDTH, "use 224")
        sizes = {"img_size": image_size}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=ways, **sizes)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ConfigError(
            f"image_size is {image_size}, but {name} takes images of any size; leave image_size out"
        ) from error
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ConfigError(
            f"image_size is {image_size}, but {name} cannot be built for it ({error}); use a multiple of 32, such as 224"
        ) from error
    return network
