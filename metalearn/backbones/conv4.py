"""The four-block convolutional network of Vinyals et al. 2016 and Finn et al. 2017."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from metalearn.checks import MOST_OF_A_WIDTH, check_choice, check_flag, check_numbers, check_whole
from metalearn.errors import ConfigError

__all__ = ["Conv4"]


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and down-sampling, then a linear head.

    The blocks pool before the ReLU. The two commute exactly, values and gradients, and the ReLU then works on a quarter of the
    elements.

    Args:
        ways: how many outputs there are, ``N``.
        in_channels: how many channels an image has, ``C``: 1 for grey, 3 for colour.
        hidden: how many filters each convolution has, or a list of four. The first block has the largest images and so most of
            the work on a CPU: ``[32, 64, 128, 128]`` takes less time there than 64.
        image_size: how many pixels an image is high and wide, ``H = W``, at least 16.
        downsample: how a block halves the image. ``"pool"`` is 2x2 max-pooling (miniImageNet in Finn et al.).
            ``"stride"`` is convolutions of stride 2 (Omniglot in Finn et al.), about a quarter of the work.
        zero_head: whether the head starts at 0, so that no class is preferred before adaptation. Labels mean nothing
            across tasks.

    Shape:
        ``[n, C, H, W] -> [n, N]``.

    Example:
        >>> import torch
        >>> from metalearn import Conv4
        >>> Conv4(ways=5, in_channels=1, image_size=28)(torch.randn(10, 1, 28, 28)).shape
        torch.Size([10, 5])
    """

    def __init__(
        self,
        ways: int = 5,
        in_channels: int = 1,
        hidden: int | Sequence[int] = 64,
        image_size: int = 28,
        downsample: Literal["pool", "stride"] = "pool",
        zero_head: bool = False,
    ) -> None:
        super().__init__()
        check_whole("ways", ways, 1, 100_000)
        check_whole("in_channels", in_channels, 1, MOST_OF_A_WIDTH)
        widths = _read_widths(hidden)
        check_whole("image_size", image_size, 1, MOST_OF_A_WIDTH, "use 28 or 84")
        check_flag("zero_head", zero_head)
        check_choice("downsample", downsample, ["pool", "stride"])
        blocks: list[nn.Module] = []
        size = image_size
        for inputs, outputs in zip([in_channels, *widths], widths, strict=False):
            blocks.append(_block(inputs, outputs, downsample))
            size = size // 2 if downsample == "pool" else (size + 1) // 2
        if size < 1:
            raise ConfigError(f"image_size is {image_size}, but four halvings need at least 16; use larger images")
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(widths[-1] * size * size, ways)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.head.bias)
        if zero_head:
            nn.init.zeros_(self.head.weight)
        self.init_args = {
            "ways": ways,
            "in_channels": in_channels,
            "hidden": hidden if isinstance(hidden, int) else widths,
            "image_size": image_size,
            "downsample": downsample,
            "zero_head": zero_head,
        }

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def _read_widths(hidden: int | Sequence[int]) -> list[int]:
    if not isinstance(hidden, (list, tuple)):
        check_whole("hidden", hidden, 1, MOST_OF_A_WIDTH)
        return [hidden] * 4  # type: ignore[list-item]
    check_numbers("hidden", hidden, "use 64, or [32, 64, 128, 128]", count=4)
    for block, width in enumerate(hidden):
        check_whole(f"hidden[{block}]", width, 1, MOST_OF_A_WIDTH)
    return [*hidden]


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, perhaps pooling, and ReLU.

    It is computed as one where the layer that stands for the normalisation can do that, as that of metalearn's inner loop can.
    """

    def forward(self, x: Tensor) -> Tensor:
        layers = self._modules
        run_block = getattr(layers.get("norm"), "run_block", None)
        if run_block is not None and _is_fusible(layers):
            y: Tensor | None = run_block(x, layers["conv"], "pool" in layers)
            if y is not None:
                return y
        result: Tensor = super().forward(x)
        return result

    def extra_repr(self) -> str:
        """Which layers run as one, and when."""
        norm = self._modules.get("norm")
        stands_in = hasattr(norm, "run_block") or type(norm) is nn.BatchNorm2d
        if not stands_in or not _is_fusible(self._modules):
            return "run one by one"
        return f"{', '.join(self._modules)}: run as one in metalearn's inner loop with kernels=True, else one by one"


_ORDERS = (["conv", "norm", "relu"], ["conv", "norm", "pool", "relu"])


def _is_fusible(layers: Mapping[str, nn.Module | None]) -> bool:
    """Whether the layers are those that a block is built of, and nobody looks inside.

    A caller may have put others in their places, in another order, with other methods, or with hooks.
    """
    if [*layers] not in _ORDERS:
        return False
    conv, pool, relu = layers["conv"], layers.get("pool"), layers["relu"]
    if type(conv) is not nn.Conv2d or type(relu) is not nn.ReLU:
        return False
    if conv.bias is not None or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    if "pool" in layers:
        if type(pool) is not nn.MaxPool2d:
            return False
        sides = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
        if sides != (2, 2, 0, 1, False, False):
            return False
    for layer in layers.values():  # noqa: SIM110  # a generator would cost more than what it looks at
        if layer is not None and ("forward" in layer.__dict__ or _is_hooked(layer)):
            return False
    return True


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _block(inputs: int, outputs: int, downsample: str) -> nn.Module:
    stride = 2 if downsample == "stride" else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        # no bias: the normalisation would subtract it again
        conv=nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        norm=nn.BatchNorm2d(outputs),
    )
    if downsample == "pool":
        layers["pool"] = nn.MaxPool2d(2)
    layers["relu"] = nn.ReLU()
    return ConvBlock(layers)
