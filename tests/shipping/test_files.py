"""Adapted models in files: small, whole or not there, and refused in one line where they are not what they should be."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from metalearn import ANIL, MAML, AdaptedModel, CheckpointError, ConfigError, Context, DataError, LoRA, SharedHead
from metalearn.inner import Adapter
from metalearn.shipping.checksum import find_checksum
from tests.shipping.made import MODULES, STEPS, Normed, draw, draw_queries, make


@pytest.mark.parametrize("name", list(MODULES))
def test_a_loaded_model_answers_as_the_saved_one(name: str, tmp_path: Path) -> None:
    module, queries = make(name), draw_queries()
    adapted = module.adapt(draw())
    adapted.names = ["cat", "dog", "hen"]
    loaded = AdaptedModel.load(adapted.save(tmp_path / "x.safetensors"), module)
    independent = adapted.independent()
    assert torch.equal(loaded(queries), independent(queries))
    assert torch.equal(loaded(queries[:1]), independent(queries[:1]))
    assert torch.equal(loaded.probabilities(queries), independent.probabilities(queries))
    assert loaded.names == ["cat", "dog", "hen"]
    assert dict(loaded.named_parameters()).keys() == dict(adapted.named_parameters()).keys()
    again = AdaptedModel.load(loaded.save(tmp_path / "again.safetensors"), module)
    assert torch.equal(again(queries), loaded(queries))


def test_a_transductive_model_stays_one_where_that_is_asked_for(tmp_path: Path) -> None:
    module, queries = make("maml"), draw_queries()
    adapted = module.adapt(draw())
    loaded = AdaptedModel.load(adapted.save(tmp_path / "x.safetensors", independent=False), module)
    torch.testing.assert_close(loaded(queries), adapted(queries), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(queries[:1]), adapted(queries[:1]), rtol=1e-4, atol=1e-5)
    assert torch.equal(loaded.independent()(queries), adapted.independent()(queries))


def test_only_what_adapted_is_written(tmp_path: Path) -> None:
    size = {name: os.path.getsize(make(name).adapt(draw()).save(tmp_path / f"{name}.safetensors")) for name in MODULES}
    numbers = sum(value.numel() for value in Normed().parameters())
    assert size["anil"] - 4 * (21 + 8) < 2000  # a head, four means and four variances, and a description
    assert size["maml"] - size["anil"] > 4 * (numbers - 21)
    with safe_open(tmp_path / "anil.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == {"head.weight", "head.bias", "norm.running_mean", "norm.running_var"}


@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize("ways", [2, 5])
def test_other_ways_are_kept(kind: Any, ways: int, tmp_path: Path) -> None:
    module, queries = kind(Normed(), **STEPS), draw_queries()
    adapted = module.adapt(draw(ways=ways), ways=ways)
    loaded = AdaptedModel.load(adapted.save(tmp_path / "x.safetensors"), module)
    assert loaded(queries).shape == (5, ways)
    assert torch.equal(loaded(queries), adapted.independent()(queries))


def test_the_checkpoint_will_do_in_the_place_of_the_module(tmp_path: Path) -> None:
    module = MAML.load_from_checkpoint("maml_glyphs_5w1s")
    support = torch.rand(5, 1, 28, 28), torch.arange(5)
    path = module.adapt(support).save(tmp_path / "x.safetensors")
    loaded = AdaptedModel.load(path, "maml_glyphs_5w1s")
    queries = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded(queries), module.adapt(support).independent()(queries))
    assert loaded.preprocessing == {"channels": 1, "size": 28, "invert": True, "mean": [0.0], "std": [1.0]}


def refused(path: Path, source: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        AdaptedModel.load(path, source)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line
    return line


def test_another_meta_model_is_refused(tmp_path: Path) -> None:
    for name in ("maml", "anil"):
        module = make(name)
        path = module.adapt(draw()).save(tmp_path / "x.safetensors")
        with torch.no_grad():
            module.backbone.conv.bias[0] += 1e-6
        assert "was adapted from another meta-model" in refused(path, module)
    assert "is of another architecture: head.bias is [3] in it and [4]" in refused(path, ANIL(Normed(ways=4)))
    assert "head.bias is [3] in it and absent" in refused(path, MAML(torch.nn.Sequential(torch.nn.Linear(3, 3))))
    assert "float32" in refused(path, make("anil").double())
    path = make("maml").adapt(draw()).save(tmp_path / "y.safetensors")
    assert "does not adapt in this module" in refused(path, make("anil"))


@pytest.mark.parametrize(
    "adapter",
    [Context(2, "body.1"), LoRA(1, "head", trains="factors"), SharedHead()],
    ids=["context", "lora", "shared"],
)
def test_another_adapter_is_another_meta_model(adapter: Adapter, tmp_path: Path) -> None:
    """Of two modules over the same network only the one that was adapted takes the file."""
    torch.manual_seed(0)
    network = Normed()
    module, other = MAML(network, adapter=adapter), MAML(network, adapter=adapter)
    with torch.no_grad():
        for value in other.adapter.parameters():
            value += 0.1
    path = module.adapt(draw()).save(tmp_path / "x.safetensors")
    AdaptedModel.load(path, module)
    assert "was adapted from another meta-model" in refused(path, other)


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The file with another description, and with the checksum that fits it: whoever writes a file can compute that."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads(file.metadata()["metalearn"])
    changed = change(described)
    text = changed if isinstance(changed, str) else json.dumps(described)
    save_file(tensors, path, {"metalearn": text, "sha256": find_checksum(tensors, text)})
    return path


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no JSON": lambda d: "{",
    "no object": lambda d: "[]",
    "nested": lambda d: "[" * 100_000,
    "format": lambda d: d.update(format=2),
    "missing": lambda d: d.pop("ways"),
    "ways": lambda d: d.update(ways=-1),
    "ways as text": lambda d: d.update(ways="5"),
    "steps": lambda d: d.update(steps=10**12),
    "names": lambda d: d.update(names=[1]),
    "long name": lambda d: d.update(names=["x" * 5000]),
    "preprocessing": lambda d: d.update(preprocessing={"size": 10**9}),
    "dtype": lambda d: d.update(dtype="__import__"),
    "shape": lambda d: d.update(shape=[-1]),
    "large shape": lambda d: d.update(shape=[1 << 30]),
    "large shape of many axes": lambda d: d.update(shape=[1 << 14] * 3),
    "shape without numbers": lambda d: d.update(shape=[1.5]),
    "other shape": lambda d: d.update(shape=[7]),
    "policy": lambda d: d.update(policy="evil"),
    "normalisations": lambda d: d.update(normalisations=["none"]),
    "normalisations as text": lambda d: d.update(normalisations="norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["anil", "ridge"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_description_of_anyones_is_one_line(change: str, name: str, tmp_path: Path) -> None:
    """The module goes on as before."""
    module, queries = make(name), draw_queries()
    adapted = module.adapt(draw())
    path = adapted.save(tmp_path / "x.safetensors")
    assert str(path) in refused(rewritten(path, CHANGES[change]), module)
    assert torch.equal(module.adapt(draw())(queries), adapted(queries))


def test_a_description_that_was_not_changed_is_taken(tmp_path: Path) -> None:
    module = make("anil")
    path = module.adapt(draw()).save(tmp_path / "x.safetensors")
    AdaptedModel.load(rewritten(path, lambda d: None), module)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    module = make("anil")
    path = module.adapt(draw()).save(tmp_path / "x.safetensors")
    whole = path.read_bytes()
    for damage in (
        b"", whole[:5], whole[: len(whole) // 2], whole[:-1], whole + b"0", struct.pack("<Q", 1 << 62) + whole[8:],
        b"\x80\x04K\x01." + whole, os.urandom(100),
    ):  # fmt: skip
        path.write_bytes(damage)
        assert "cannot be read" in refused(path, module)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged: its checksum is another" in refused(path, module)
    save_file({"a": torch.zeros(2)}, path)
    assert "is a .safetensors file of something else" in refused(path, module)
    assert "is no file" in refused(tmp_path, module)
    assert "cannot be opened" in refused(tmp_path / "none", module)
    assert "cannot be opened" in refused(Path("a\0b"), module)
    with pytest.raises(ConfigError, match="source is 5, but it must be a module"):
        AdaptedModel.load(path, 5)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = make("anil").adapt(draw())
    path = adapted.save(tmp_path / "new" / "x.safetensors")
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"x\.safetensors cannot be written \(No space left on device\); free space"):
        make("anil").adapt(draw(seed=1)).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("names", [("cat", "dog"), "cat", [1, 2], ["a\nb"]])
def test_names_that_are_no_texts_are_one_line(names: Any, tmp_path: Path) -> None:
    adapted = make("anil").adapt(draw())
    adapted.names = names
    with pytest.raises(ConfigError, match="names is .*, but it must be a list of texts"):
        adapted.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
