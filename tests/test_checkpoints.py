"""The checkpoints that we ship are whole, load, and adapt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from metalearn import MAML
from metalearn.cli.shipped import shipped_configs
from metalearn.datamodules import GlyphsDataModule

FOLDER = Path(__file__).parents[1] / "checkpoints"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


@pytest.mark.parametrize("name", MANIFEST)
def test_a_shipped_checkpoint_is_what_the_manifest_says(name: str) -> None:
    entry = MANIFEST[name]
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == entry["sha256"]
    assert entry["config"] in shipped_configs()
    module = MAML.load_from_checkpoint(FOLDER / name).eval()
    right = []
    for index in range(20):
        support, query = GlyphsDataModule(queries=5).episode(0, "test", index)
        right.append(float((module.adapt(support)(query.x).argmax(-1) == query.y).float().mean()))
    assert sum(right) / 20 > 0.6  # chance is a fifth; the one of Omniglot has never seen a printed letter


def test_every_checkpoint_is_in_the_manifest() -> None:
    assert {path.name for path in FOLDER.glob("*.ckpt")} == set(MANIFEST)
