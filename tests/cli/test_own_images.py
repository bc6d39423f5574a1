"""``metalearn predict`` of a user's own images: what adapted is kept in a file, and answers without the support images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metalearn import ANIL, MAML, Batch, CheckpointError, Conv4, MetaModule, ProtoNet
from metalearn.cli import main
from metalearn.datamodules import ImageSpec
from metalearn.image_classifier import ImageClassifier, adapt_to_folder

SHIPPED = "maml_glyphs_5w1s"
SPEC = ImageSpec(channels=1, size=28, mean=[0.0], std=[1.0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(folder: Path) -> None:
    """Put three classes of two images each into ``S``, three queries into ``Q``, and a checkpoint of ANIL beside them."""
    rng = np.random.default_rng(0)
    for place in ("S/bar", "S/cross", "S/dot", "Q"):
        (folder / place).mkdir(parents=True)
        for index in range(3 if place == "Q" else 2):
            pixels = rng.integers(0, 255, (30, 30), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{index}.png")
    write(ANIL, folder / "anil.ckpt")


def write(kind: type[MetaModule], path: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    steps = {} if kind is ProtoNet else {"inner_steps": 1}
    module = kind(Conv4(ways=3, hidden=4), **steps)  # type: ignore[call-arg, arg-type]
    module.image_spec = SPEC.to_dict()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


def refused(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """The line with which a call ends, which leaves no file behind."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["predict", *words.split()])
    assert caught.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("metalearn: error: "))
    assert sorted(Path.cwd().rglob("*")) == before
    return line


def test_a_whole_network_answers_without_the_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"predict --ckpt_path {SHIPPED} --support S --query Q --output first --save_adapted new/a.safetensors".split())
    assert "metalearn predict --adapted new/a.safetensors --query FOLDER\n" in capsys.readouterr().out
    main(["predict", "--adapted", "new/a.safetensors", "--query", "Q", "--output", "second"])
    assert "6 images of 3 classes: bar, cross, dot" in capsys.readouterr().out
    tables = [
        np.genfromtxt(f"{name}/predictions.csv", delimiter=",", skip_header=1)[:, 2:] for name in ("first", "second")
    ]
    np.testing.assert_allclose(tables[0], tables[1], rtol=0, atol=1e-6)
    assert os.path.getsize("new/a.safetensors") > 400_000
    main(
        f"predict --adapted new/a.safetensors --query Q --output third --ckpt_path {SHIPPED}".split()
    )  # may stand there
    assert Path("third/predictions.csv").read_text() == Path("second/predictions.csv").read_text()


def test_a_long_list_of_classes_is_wrapped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(20):
        (folder / "many" / f"a class of number {index}").mkdir(parents=True)
        Image.new("L", (30, 30)).save(folder / "many" / f"a class of number {index}" / "0.png")
    main(["predict", "--ckpt_path", "anil.ckpt", "--support", "many", "--query", "Q"])
    box = capsys.readouterr().out
    assert "20 images of 20 classes" in box
    assert "number 19" in box
    assert max(map(len, box.splitlines())) <= 80


def test_a_head_needs_the_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "--ckpt_path", "anil.ckpt", "--support", "S", "--save-adapted", "a.safetensors"])
    assert "metalearn predict --adapted a.safetensors --query FOLDER --ckpt_path anil.ckpt\n" in capsys.readouterr().out
    assert os.path.getsize("a.safetensors") < 10_000
    assert not Path("predictions").exists()
    main(["predict", "--adapted", "a.safetensors", "--query", "Q", "--ckpt_path", "anil.ckpt"])
    assert "Q/2.png" in Path("predictions/predictions.csv").read_text()
    line = refused(capsys, "--adapted a.safetensors --query Q --output two")
    assert "does not hold a whole network, but 2 tensors of a Conv4; name the checkpoint" in line
    assert "(--ckpt_path)" in line
    write(ANIL, folder / "other.ckpt", seed=1)
    assert "another meta-model" in refused(
        capsys, "--adapted a.safetensors --query Q --output two --ckpt_path other.ckpt"
    )


def test_the_table_beside_a_file_is_what_the_file_answers(folder: Path) -> None:
    """To each image by itself, where the network was trained to normalise them together."""
    module = MAML.load_from_checkpoint(SHIPPED)
    assert module.norm == "transductive"
    main(f"predict --ckpt_path {SHIPPED} --support S --query Q --save_adapted a.safetensors".split())
    table = np.genfromtxt("predictions/predictions.csv", delimiter=",", skip_header=1)[:, 2:]
    for name in ("1.png", "2.png"):
        os.remove(f"Q/{name}")
    main(["predict", "--adapted", "a.safetensors", "--query", "Q", "--output", "alone"])
    alone = np.genfromtxt("alone/predictions.csv", delimiter=",", skip_header=1)[2:]
    np.testing.assert_allclose(alone, table[0], rtol=0, atol=1e-5)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "--adapted none --query Q": (lambda path: None, "adapted model 'none' cannot be opened"),
    "--adapted S --query Q": (lambda path: None, "adapted model S is no file"),
    "--adapted anil.ckpt --query Q": (lambda path: None, "anil.ckpt cannot be read"),
    "--adapted x --query Q": (
        lambda path: save_file({"a": torch.zeros(2)}, path / "x"), "is a .safetensors file of something else"
    ),
    "--adapted x --support S --query Q": (lambda path: None, "--support and --adapted are both given"),
    "--adapted x": (lambda path: None, "required: --query"),
    "--support S --query Q": (lambda path: None, "required: --ckpt_path"),
    "--ckpt_path anil.ckpt --query Q": (lambda path: None, "required: --support (or --adapted)"),
    "--adapted= --query Q": (lambda path: None, "--adapted: it is empty, but it must name a file"),
    "--ckpt_path anil.ckpt --support S --save_adaptd x": (lambda path: None, "did you mean --save_adapted?"),
    "--ckpt_path anil.ckpt --support S --save_adapted S": (lambda path: None, "save_adapted is S, but that is there already"),
    "--ckpt_path anil.ckpt --support S --export anil.ckpt": (lambda path: None, "export is anil.ckpt, but that is there already"),
    "--ckpt_path anil.ckpt --support S --export x --save_adapted ./x": (lambda path: None, "are both x, but they are two files"),
    "--ckpt_path anil.ckpt --support S --save_adapted anil.ckpt/x": (lambda path: None, "anil.ckpt/x cannot be written"),
    "--ckpt_path anil.ckpt --support S --query none --save_adapted x": (lambda path: None, "query none is not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("words", list(BAD))
def test_what_cannot_be_done_is_one_line(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, line = BAD[words]
    prepare(folder)
    assert line in refused(capsys, words)


def test_a_classifier_is_saved_and_loaded_in_python(folder: Path) -> None:
    classifier = adapt_to_folder("anil.ckpt", "S")
    loaded = ImageClassifier.load(classifier.save("a.safetensors"), "anil.ckpt")
    assert (loaded.names, loaded.spec, loaded.support) == (["bar", "cross", "dot"], SPEC, 6)
    images = np.random.default_rng(1).integers(0, 255, (4, 1, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(loaded(images), classifier.independent()(images))
    assert loaded.classify_folder("Q") == classifier.independent().classify_folder("Q")


def test_a_file_of_no_classes_of_images_is_one_line(tmp_path: Path) -> None:
    module = MAML(Conv4(ways=2, hidden=4))
    adapted = module.adapt(Batch(torch.rand(4, 1, 28, 28), torch.tensor([0, 0, 1, 1])))
    with pytest.raises(CheckpointError, match="does not say how images are read"):
        ImageClassifier.load(adapted.save(tmp_path / "x"))
    adapted.preprocessing = SPEC.to_dict()
    assert ImageClassifier.load(adapted.save(tmp_path / "x")).names == ["class 0", "class 1"]
    adapted.names = ["cat"]
    with pytest.raises(CheckpointError, match="has 1 names of classes for 2 outputs; set adapted.names"):
        ImageClassifier.load(adapted.save(tmp_path / "x"))


def test_without_the_extra_an_export_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was saved before it is taken away again."""
    monkeypatch.setattr("metalearn.shipping.export.find_spec", lambda name: None)
    line = refused(capsys, "--ckpt_path anil.ckpt --support S --save_adapted x --export y")
    assert "pip install 'metalearn-lightning[onnx]'" in line
