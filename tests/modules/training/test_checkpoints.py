"""Save and reload of every module, with weights_only=True, and checkpoints that cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn import ANIL, MAML, MLP, Batch, CheckpointError, ConfigError, Conv4, MetaModule, ResNet12
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import TinyConv, noise_episode

BUILT: dict[str, Callable[[], MetaModule]] = {
    "maml": lambda: MAML(Conv4(3, hidden=4, image_size=16), inner_steps=2),
    "maml_stride": lambda: MAML(
        Conv4(3, hidden=4, image_size=16, downsample="stride", zero_head=True), inner_lr=[0.1, 0.2], inner_steps=2
    ),
    "maml_learned": lambda: MAML(MLP(3, 256, [8]), inner_lr="learn", norm="support"),
    "anil": lambda: ANIL(ResNet12(3, 1, [4, 4, 4, 4]), head="head"),
    "callables": lambda: MAML(
        MLP(3, 256, [8]), outer_optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        outer_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    ),
}  # fmt: skip


class BigNoise(NoiseTasks):
    """16 x 16 images."""

    def draw(self, seed, split, indices):  # type: ignore[no-untyped-def]
        episode = super().draw(seed, split, indices)
        return type(episode)(*(Batch(x.repeat(1, 1, 1, 2, 2), y) for x, y in episode))


@pytest.mark.parametrize("name", BUILT)
def test_a_module_reloads_from_its_checkpoint_alone(name: str, tmp_path: Path) -> None:
    module = BUILT[name]()
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, datamodule=BigNoise())
    path = tmp_path / "module.ckpt"
    run.save_checkpoint(path)
    torch.load(path, weights_only=True)
    again = type(module).load_from_checkpoint(path)
    assert type(again) is type(module)
    assert again.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in module.state_dict().items())
    episode = noise_episode(1, shape=(1, 16, 16), dtype=torch.float32)
    support = Batch(episode.support.x[0], episode.support.y[0])
    torch.testing.assert_close(again.adapt(support)(episode.query.x[0]), module.adapt(support)(episode.query.x[0]))


def saved(tmp_path: Path, net: nn.Module) -> Path:
    module = MAML(net, inner_steps=1)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, datamodule=NoiseTasks(train_tasks=4))
    run.save_checkpoint(tmp_path / "module.ckpt")
    return tmp_path / "module.ckpt"


def test_a_foreign_backbone_is_passed_in(tmp_path: Path) -> None:
    path = saved(tmp_path, TinyConv())
    with pytest.raises(CheckpointError, match="does not say how its backbone is built.*backbone=YourNetwork"):
        MAML.load_from_checkpoint(path)
    assert isinstance(MAML.load_from_checkpoint(path, backbone=TinyConv()), MAML)


@pytest.mark.parametrize(
    "loss", [nn.functional.cross_entropy, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))]
)
def test_a_loss_of_python_has_to_be_passed_again(loss: Any, tmp_path: Path) -> None:
    module = MAML(MLP(3, 64, [8]), inner_steps=1, loss=loss)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, datamodule=NoiseTasks(train_tasks=4))
    run.save_checkpoint(tmp_path / "module.ckpt")
    with pytest.raises(CheckpointError, match="made with a loss given in Python.*pass loss="):
        MAML.load_from_checkpoint(tmp_path / "module.ckpt")
    with pytest.raises(CheckpointError, match="made with a loss given in Python.*pass loss="):
        run.test(MAML(MLP(3, 64, [8])), datamodule=NoiseTasks(), ckpt_path=tmp_path / "module.ckpt", verbose=False)
    assert MAML.load_from_checkpoint(tmp_path / "module.ckpt", loss=loss).hparams.inner_steps == 1


def test_another_architecture_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path, TinyConv())
    with pytest.raises(CheckpointError, match=r"backbone.head.bias is \[3\] in it and \[4\] in this model"):
        MAML.load_from_checkpoint(path, backbone=TinyConv(ways=4))


class Masked(TinyConv):
    """Keeps a mask of infinities, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("head.bias", None, r"backbone.head.bias is absent in it and \[3\] in this model"),
        ("more", torch.zeros(2), r"backbone.more is \[2\] in it and absent in this model"),
        (
            "head.bias",
            torch.zeros(3, dtype=torch.int64),
            "head.bias is of torch.int64, but this model's is of torch.float32",
        ),
        ("head.bias", torch.zeros(3, dtype=torch.complex64), "head.bias is of torch.complex64"),
        (
            "head.bias",
            torch.tensor([0.0, torch.inf, torch.nan]),
            "not finite: 2 of the 3 numbers of backbone.head.bias",
        ),
        ("mask", torch.tensor([0.0, torch.nan]), "not finite: 1 of the 2 numbers of backbone.mask"),
        ("mask", torch.tensor([False, True]), "mask is of torch.bool"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(name: str, value: torch.Tensor | None, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path, Masked())
    content = torch.load(path, weights_only=True)
    if value is None:
        del content["state_dict"][f"backbone.{name}"]
    else:
        content["state_dict"][f"backbone.{name}"] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=said):
        MAML.load_from_checkpoint(path, backbone=Masked())


def test_infinities_in_a_buffer_and_weights_of_another_precision_are_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, Masked())
    content = torch.load(path, weights_only=True)
    content["state_dict"]["backbone.head.bias"] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.save(content, path)
    net = MAML.load_from_checkpoint(path, backbone=Masked()).backbone
    assert net.mask.tolist() == [0.0, -torch.inf]
    assert net.head.bias.tolist() == [1.0, 2.0, 3.0]


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {}, "hyper_parameters": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        MAML.load_from_checkpoint(tmp_path / "evil.ckpt")
    path = saved(tmp_path, TinyConv())
    content = torch.load(path, weights_only=True)
    content["metalearn"]["backbone"] = {
        "class_path": "subprocess.Popen",
        "init_args": {"args": ["touch", str(tmp_path / "ran")]},
    }
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="subprocess.Popen, which is not built from a file"):
        MAML.load_from_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="weights_only is False"):
        MAML.load_from_checkpoint(path, weights_only=False)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "cannot be read"), (b"not a checkpoint", "cannot be read"), (None, "does not exist")]
)
def test_unusable_files_are_one_line(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        MAML.load_from_checkpoint(path)


def test_a_truncated_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path, TinyConv())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        MAML.load_from_checkpoint(path, backbone=TinyConv())


def test_state_dicts_are_those_of_the_stock_network() -> None:
    """Batch normalisation keeps its names, so weights move in and out of a module."""
    net = TinyConv()
    stock = copy.deepcopy(net)
    MAML(net)
    assert net.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(net.state_dict())


class Noting(nn.Module):
    """Keeps plain values in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.notes = nn.Linear(3, 3), {"seen": [0]}

    def get_extra_state(self) -> dict[str, list[int]]:
        return self.notes

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.notes = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_a_layer_may_keep_plain_values_in_its_state(tmp_path: Path) -> None:
    module = MAML(Noting(), inner_steps=1)
    module.backbone.notes = {"seen": [3, 4]}
    run = trainer(tmp_path)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "notes.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "notes.ckpt", backbone=Noting())
    assert again.backbone.notes == {"seen": [3, 4]}
