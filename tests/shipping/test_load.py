"""A module from a checkpoint, whatever its class."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

import metalearn
from metalearn import ANIL, MAML, MLP, CheckpointError, MetaModule
from tests.shipping.made import Normed, draw, draw_queries


def write(module: MetaModule, path: Path) -> Path:
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, barebones=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def test_a_checkpoint_says_its_class(tmp_path: Path) -> None:
    for module in (MAML(MLP(3, 4), inner_steps=2), ANIL(MLP(3, 4), head_solver="ridge")):
        loaded = metalearn.load(write(module, tmp_path / "x.ckpt"))
        assert type(loaded) is type(module)
        assert not loaded.training
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True))
        support = torch.randn(6, 4), torch.arange(6) % 3
        assert torch.equal(loaded.adapt(support)(torch.ones(2, 4)), module.adapt(support)(torch.ones(2, 4)))


def test_networks_and_losses_of_a_user_are_passed(tmp_path: Path) -> None:
    module = MAML(Normed(), loss=nn.functional.cross_entropy)
    path = write(module, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="does not say how its backbone is built"):
        metalearn.load(path)
    loaded = metalearn.load(path, backbone=Normed(), loss=nn.functional.cross_entropy)
    assert torch.equal(loaded.adapt(draw())(draw_queries()), module.adapt(draw())(draw_queries()))


class Mine(MAML):
    """A user's."""


def test_a_class_of_a_users_own_is_one_line(tmp_path: Path) -> None:
    path = write(Mine(MLP(3, 4)), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"Mine', which is not built from a file unasked; use YourModule\.load"):
        metalearn.load(path)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; did you mean maml_glyphs_5w1s"):
        metalearn.load("maml_glyph_5w1s")
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="x"):
        metalearn.load(tmp_path / "x")
