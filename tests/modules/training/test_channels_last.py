"""A fit with convolutions in another memory format, against the same fit without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metalearn import MAML, Baseline, ChannelsLast, Conv4, ProtoNet
from metalearn.cli import main
from tests.networks import noise_episode


class Own(L.LightningModule):
    """A user's module, of 3 colours."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch.support.x.flatten(0, 1), batch.support.y.flatten()
        return F.cross_entropy(self.backbone(x.expand(-1, 3, -1, -1)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


MODULES: dict[str, Any] = {
    "own": lambda: Own(Conv4(3, in_channels=3, hidden=5, image_size=16)),
    "baseline": lambda: Baseline(Conv4(3, hidden=[4, 6, 5, 8], image_size=16)),
    "maml": lambda: MAML(Conv4(3, hidden=5, image_size=16), inner_steps=2),
    "protonet": lambda: ProtoNet(Conv4(3, hidden=5, image_size=16)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_fit_gives_the_same_weights_and_plain_checkpoints(name: str, tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [ChannelsLast()]):
        torch.manual_seed(0)
        module = MODULES[name]().double()
        trainer = L.Trainer(
            max_steps=3, callbacks=callbacks, logger=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0, enable_checkpointing=False,
        )  # fmt: skip
        loader = DataLoader(
            [noise_episode(tasks=2, shape=(1, 16, 16), seed=seed) for seed in range(3)], batch_size=None
        )
        trainer.fit(module, loader, None if name == "own" else loader)
        convolution = module.backbone.body[1].conv.weight
        assert convolution.is_contiguous(memory_format=torch.channels_last) == bool(callbacks)
        trainer.save_checkpoint(tmp_path / "there.ckpt")
        saved = torch.load(tmp_path / "there.ckpt", weights_only=True)["state_dict"]
        again = MODULES[name]().double()
        again.load_state_dict(saved)
        assert again.backbone.body[1].conv.weight.is_contiguous()
        weights.append(again.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-8, atol=1e-10, msg=key)


def test_the_command_line_takes_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", "baseline_glyphs_5w1s", "--trainer.callbacks+", "metalearn.ChannelsLast", "--trainer.max_steps",
          "2", "--data.test_tasks", "4", "--data.val_tasks", "4", "--trainer.accelerator", "cpu"])  # fmt: skip
    (config,) = tmp_path.glob("runs/*/version_0/config.yaml")
    assert "ChannelsLast" in config.read_text()
