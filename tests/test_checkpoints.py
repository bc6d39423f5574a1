"""The checkpoints that we ship are whole, load, and adapt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from metalearn import CheckpointError
from metalearn.carried import read_checkpoint
from metalearn.carried.shipped import checkpoint_path, shipped_checkpoints
from metalearn.cli import main
from metalearn.cli.shipped import shipped_configs
from metalearn.datamodules import GlyphsDataModule
from metalearn.image_classifier import load_module

FOLDER = Path(__file__).parents[1] / "checkpoints"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


@pytest.mark.parametrize("name", MANIFEST)
def test_a_shipped_checkpoint_is_what_the_manifest_says(name: str) -> None:
    entry = MANIFEST[name]
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == entry["sha256"]
    assert entry["config"] in shipped_configs()
    module, _ = load_module(name.removesuffix(".ckpt"))
    ways = int(entry["config"].rpartition("_")[2].partition("w")[0])
    data = GlyphsDataModule(ways=ways, queries=5)
    right = []
    for index in range(20):
        support, query = data.episode(0, "test", index)
        right.append(float((module.adapt(support)(query.x).argmax(-1) == query.y).float().mean()))
    assert sum(right) / 20 > 3 / ways  # three times chance; those of Omniglot have never seen a printed letter


@pytest.mark.parametrize("name", MANIFEST)
def test_a_shipped_checkpoint_holds_no_state_of_its_training(name: str) -> None:
    checkpoint = read_checkpoint(str(FOLDER / name))
    assert not {"optimizer_states", "callbacks", "loops", "averaging_state"} & set(checkpoint)
    data = yaml.safe_load(checkpoint["metalearn"]["config"])["data"]["init_args"]
    assert not Path(data.get("root", ".")).is_absolute()


def test_every_checkpoint_is_in_the_manifest() -> None:
    assert (
        {path.name for path in FOLDER.glob("*.ckpt")}
        == {f"{name}.ckpt" for name in shipped_checkpoints()}
        == set(MANIFEST)
    )


def test_a_file_comes_before_a_shipped_checkpoint_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("maml_glyphs_5w1s", "maml_glyphs_5w1s.ckpt"):
        assert checkpoint_path(name) == str(FOLDER / "maml_glyphs_5w1s.ckpt")
    Path("maml_glyphs_5w1s").write_text("a file of mine")
    assert checkpoint_path("maml_glyphs_5w1s") == "maml_glyphs_5w1s"
    with pytest.raises(CheckpointError, match="maml_glyphs_5w1s cannot be read"):
        read_checkpoint("maml_glyphs_5w1s")


@pytest.mark.parametrize(
    "name", ["", "last", "best", "hpc", "../maml_glyphs_5w1s", "https://a/maml_glyphs_5w1s", "a\0b"]
)
def test_anything_else_stays_as_it_is(name: str) -> None:
    assert checkpoint_path(name) == name
    with pytest.raises(CheckpointError):
        read_checkpoint(name)


def test_a_wrong_name_has_its_nearest() -> None:
    with pytest.raises(CheckpointError, match="maml_glyph_5w1s does not exist; did you mean maml_glyphs_5w1s"):
        read_checkpoint("maml_glyph_5w1s")
    with pytest.raises(CheckpointError, match="last.ckpt does not exist; the summary of a fit names"):
        read_checkpoint("last.ckpt")


def test_the_command_line_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["test", "--ckpt_path", "maml_glyphs_5w1s", "--data.test_tasks", "4", "--trainer.accelerator", "cpu"])
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "runs/maml_glyphs_5w1s/version_0/test_tasks.csv").is_file()
