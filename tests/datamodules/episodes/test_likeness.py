"""Whether images are like those of the training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from metalearn import MAML
from metalearn.backbones import Conv4
from metalearn.cli import main
from metalearn.datamodules import GlyphsDataModule
from metalearn.datamodules.episodes.likeness import describe_images
from metalearn.errors import CheckpointError
from metalearn.image_classifier import adapt_to_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("likeness")
    data = GlyphsDataModule(ways=3, shots=1, queries=2, tasks_per_batch=1, train_tasks=2, val_tasks=1, test_tasks=1)
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(MAML(Conv4(3, 1, 4, 28), inner_steps=1), data)
    trainer.save_checkpoint(folder / "made.ckpt")
    return folder / "made.ckpt"


def draw(folder: Path, kind: str, classes: int = 2) -> None:
    """Strokes on white paper, or coloured noise as photographs have it."""
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(2):
            if kind == "photo":
                pixels = np.random.default_rng([label, index]).integers(0, 255, (90, 100, 3), np.uint8)
                pixels[..., 0] //= 3
            else:
                pixels = np.full((105, 105, 3), 255, np.uint8)
                pixels[20:85, 45 + 9 * label : 52 + 9 * label] = 0
                pixels[50 + 4 * index : 57 + 4 * index, 20:85] = 0
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")


def test_statistics_are_those_of_the_pixels_in_plain_floats(checkpoint: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7)).astype(np.uint8)
    found = describe_images(images)
    pixels = torch.from_numpy(images).double() / 255
    grey = pixels.mean(1)
    expected = {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2), correction=0),
        "detail": (
            (grey[:, 1:] - grey[:, :-1]).abs().mean((1, 2)) + (grey[..., 1:] - grey[..., :-1]).abs().mean((1, 2))
        )
        / 2,
        "colour": (pixels - grey[:, None]).abs().mean((1, 2, 3)),
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx([float(values.mean()), float(values.std(correction=0))], abs=1e-6)
    kept = torch.load(checkpoint, weights_only=True)["metalearn"]["image_statistics"]
    assert all(type(value) is float for pair in kept.values() for value in pair)
    assert list(kept) == list(expected)
    assert kept["colour"] == [0.0, 0.0]
    assert 0.02 < kept["brightness"][0] < 0.5  # bright ink on black


def run_predict(checkpoint: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="metalearn.cli.own_images"):
        folders = [word for part in ("support", "query") for word in (f"--{part}", str(folder / part))]
        main(["predict", "--ckpt_path", str(checkpoint), *folders, "--output", str(folder / "out")])
    return [record.getMessage() for record in caplog.records if record.name == "metalearn.cli.own_images"]


def test_photographs_are_told_from_glyphs(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("ink", "photo"):
        for part in ("support", "query"):
            draw(tmp_path / kind / part, kind)
    assert run_predict(checkpoint, tmp_path / "ink", caplog) == []
    (line,) = run_predict(checkpoint, tmp_path / "photo", caplog)
    assert "\n" not in line
    for part in (
        "the support images are unlike",
        "the query images are unlike",
        "brightness is 0.",
        "4 of 4 are coloured",
    ):
        assert part in line
    (tmp_path / "photo" / "support").rename(tmp_path / "ink" / "photos")
    (tmp_path / "ink" / "query").rename(tmp_path / "ink" / "old")
    (tmp_path / "ink" / "photos").rename(tmp_path / "ink" / "query")
    (line,) = run_predict(checkpoint, tmp_path / "ink", caplog)
    assert "support" not in line


def test_sizes_and_checkpoints_of_before(checkpoint: Path, tmp_path: Path) -> None:
    """Without statistics what files look like is told all the same; statistics that are none are one line."""
    draw(tmp_path / "ink", "ink")
    draw(tmp_path / "odd", "ink")
    for file in (tmp_path / "odd").rglob("*.png"):
        Image.open(file).resize((12, 12) if file.stem == "0" else (105, 40)).save(file)
    whole: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    del whole["metalearn"]["image_statistics"]
    torch.save(whole, tmp_path / "old.ckpt")
    old = adapt_to_folder(tmp_path / "old.ckpt", tmp_path / "ink")
    assert old.statistics is None
    assert old.unlike is None
    odd = adapt_to_folder(tmp_path / "old.ckpt", tmp_path / "odd").unlike
    assert odd is not None
    assert "2 of 4 have 12 x 12 pixels or so, which are enlarged to 28 x 28" in odd
    assert "2 of 4 are 105 x 40 pixels or so, which are pressed into a square" in odd
    for wrong in ({"brightness": [1.0]}, {"brightness": [1.0, float("nan")]}, 3, {"brightness": "x"}):
        whole["metalearn"]["image_statistics"] = wrong
        torch.save(whole, tmp_path / "wrong.ckpt")
        with pytest.raises(CheckpointError, match=r"wrong.ckpt: its image_statistics is .*, which no run writes"):
            adapt_to_folder(tmp_path / "wrong.ckpt", tmp_path / "ink")
