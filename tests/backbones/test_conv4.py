"""The blocks of Conv4 run as one only where they are what they were built as, and are the same function either way."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from metalearn import MAML, ConfigError, Conv4
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import noise_episode

SHAPE = (1, 16, 16)


class Tapped(Conv4):
    """Walks through its blocks itself, and uses what is between their layers."""

    def forward(self, x: Tensor) -> Tensor:
        taps: Tensor | float = 0.0
        for block in self.body[:4]:
            for layer in block:
                x = layer(x)
                taps = taps + x.mean()
        return self.head(x.flatten(1)) * taps


class Skipping(Conv4):
    """Uses the output of its blocks twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body[0](x)
        return super().forward(x) + y.mean((1, 2, 3))[:, None]


class NormAndReLU(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) + 0.1 * x


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(-1)


def reorder(block: nn.Module, *names: str) -> nn.Module:
    return type(block)(OrderedDict((name, getattr(block, name)) for name in names))


def replace(block: nn.Module, **layers: nn.Module) -> nn.Module:
    for name, layer in layers.items():
        setattr(block, name, layer)
    return block


def put_method_in(block: nn.Module) -> nn.Module:
    def forward(self: nn.ReLU, x: Tensor) -> Tensor:
        return x.tanh()

    block.relu.forward = types.MethodType(forward, block.relu)
    return block


def parametrise(block: nn.Module) -> nn.Module:
    parametrize.register_parametrization(block.conv, "weight", Doubled())
    return block


def add_layer(block: nn.Module) -> nn.Module:
    block.add_module("last", nn.Tanh())
    return block


Change = Callable[[nn.Module], nn.Module]
CHANGES: dict[str, list[Change]] = {
    "other_layers": [
        lambda block: replace(block, relu=nn.Softplus()),
        lambda block: replace(block, pool=nn.MaxPool2d(3, 2, 1)),
        lambda block: replace(block, norm=NormAndReLU(36)),
        lambda block: replace(block, pool=nn.AvgPool2d(2), norm=nn.Identity()),
    ],
    "other_orders": [
        lambda block: reorder(block, "conv", "relu", "norm", "pool"),
        lambda block: reorder(block, "norm", "conv", "pool", "relu"),
        lambda block: reorder(block, "conv", "pool", "norm", "relu"),
        lambda block: reorder(block, "conv", "norm", "relu", "pool"),
    ],
    "other_methods": [put_method_in, parametrise, add_layer, lambda block: block],
    "other_convolutions": [
        lambda block: replace(block, conv=nn.Conv2d(1, 36, 3, padding="same", bias=False)),
        lambda block: replace(block, conv=nn.Conv2d(36, 36, 3, padding=1, padding_mode="reflect", bias=False)),
        lambda block: replace(block, conv=nn.Conv2d(36, 36, 3, padding=1)),
        lambda block: block,
    ],
}
"""What is done to each block of a network."""


def check(net: nn.Module, **arguments: bool) -> None:
    episode = noise_episode(tasks=2, shape=SHAPE)
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.1, first_order=False)
    values = MAML(net, inner_steps=1, inner_lr=0.1, **arguments).meta_gradient(episode)
    scale = max(float(value.norm()) for value in expected.values())
    for name, exact in expected.items():  # a bias before a normalisation has no gradient but rounding
        assert float((values[name] - exact).norm()) < 1e-9 * max(float(exact.norm()), 1e-6 * scale), name


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_block_computes_what_it_says(name: str) -> None:
    torch.manual_seed(0)
    net = Conv4(3, hidden=36, image_size=16)
    for index, change in enumerate(CHANGES[name]):
        net.body[index] = change(net.body[index])
    net.double()
    assert all("run one by one" in repr(block) for block in net.body[:3])
    check(net)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_each_block_may_have_a_width_of_its_own(downsample: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Conv4(3, hidden=[4, 40, 8, 6], image_size=16, downsample=downsample).double()
    assert [block.conv.out_channels for block in net.body[:4]] == [4, 40, 8, 6]
    check(net)
    module = MAML(Conv4(3, hidden=(4, 5, 8, 6), image_size=16, downsample=downsample), inner_steps=1)
    trainer = L.Trainer(max_steps=1, logger=False, enable_progress_bar=False, accelerator="cpu",
                        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0)  # fmt: skip
    loader = DataLoader([noise_episode(tasks=2, shape=SHAPE, dtype=torch.float32)], batch_size=None)
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(tmp_path / "there.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "there.ckpt")
    for name, value in module.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("hidden", "text"),
    [
        ([64, 64], r"hidden is \[64, 64\], but it must be a list of 4 numbers; use 64, or \[32, 64, 128, 128\]"),
        ([64, 64, 0, 64], r"hidden\[2\] is 0"),
        ([64, 64, 1.5, 64], r"hidden\[2\] is 1.5"),
        ("64", "hidden is '64'"),
        (0, "hidden is 0"),
        (True, "hidden is True"),
    ],
)
def test_wrong_widths_are_one_line(hidden: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Conv4(hidden=hidden)


@pytest.mark.parametrize("kind", [Tapped, Skipping])
def test_a_subclass_computes_what_it_says(kind: type[Conv4]) -> None:
    torch.manual_seed(0)
    check(kind(3, hidden=36, image_size=16).double())


@pytest.mark.parametrize(("downsample", "layers"), [("pool", "conv, norm, pool, relu"), ("stride", "conv, norm, relu")])
def test_a_block_prints_which_layers_run_as_one(downsample: str, layers: str) -> None:
    net = Conv4(3, downsample=downsample)  # type: ignore[arg-type]
    lines = [repr(block).splitlines()[1].strip() for block in net.body[:4]]
    assert set(lines) == {f"{layers}: run as one in metalearn's inner loop with kernels=True, else one by one"}
    net.body[0].relu.register_forward_hook(lambda layer, args, out: out)
    assert "run one by one" in repr(net.body[0])


@pytest.mark.parametrize("kernels", [True, False])
def test_a_block_runs_as_one_where_it_says_so(kernels: bool) -> None:
    """Its pooling and its ReLU are then never called, and the gradient is the same."""
    torch.manual_seed(0)
    net, episode = Conv4(3, hidden=36, image_size=16).double(), noise_episode(tasks=2, shape=SHAPE)
    module = MAML(net, inner_steps=1, inner_lr=0.1, kernels=kernels)
    module.meta_gradient(episode)  # the way of running is chosen, and other ways have been tried for that
    kinds: set[type] = set()
    handle = nn.modules.module.register_module_forward_hook(lambda layer, args, out: kinds.add(type(layer)))
    try:
        values = module.meta_gradient(episode)
    finally:
        handle.remove()
    assert kernels != bool({nn.ReLU, nn.MaxPool2d} & kinds)
    assert largest_error(values, plain_loop(copy.deepcopy(net), episode, 1, 0.1, first_order=False)) < 1e-9


class Checkpointed(Conv4):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def is_checkpoint_mapped() -> bool:
    """Whether this torch maps activation checkpointing over tasks; 2.6 does not."""
    try:
        torch.vmap(lambda x: checkpoint(torch.sin, x, use_reentrant=False))(torch.ones(2, 3, requires_grad=True))
    except RuntimeError:
        return False
    return True


def test_blocks_within_activation_checkpointing_use_our_operators() -> None:
    """What they save is kept, or it would be computed again with other weights."""
    torch.manual_seed(0)
    net, episode = Conv4(3, hidden=36, image_size=16).double(), noise_episode(tasks=2, shape=SHAPE)
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.1, first_order=False)
    saving = Checkpointed(3, hidden=36, image_size=16).double()
    saving.load_state_dict(net.state_dict())
    for execution in ("sequential", "vectorized") if is_checkpoint_mapped() else ("sequential",):
        module = MAML(saving, inner_steps=1, inner_lr=0.1, execution=execution)
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9
        assert module.choice is not None
        assert (module.choice.name, module.choice.own_operators) == (execution, True)
