"""Adapted models as programs of torch.export and as ONNX files, and compiled."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import ANIL, MAML, ConfigError
from tests.shipping.made import STEPS, Normed, draw, draw_queries, make

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the packages of the extra onnx are not installed")


@pytest.mark.parametrize("name", ["maml", "cosine"])
def test_an_exported_program_answers_as_the_independent_model(name: str) -> None:
    adapted = make(name).adapt(draw())
    program, queries = adapted.exported().module(), draw_queries(7)
    for count in (1, 2, 7):
        torch.testing.assert_close(program(queries[:count]), adapted.independent()(queries[:count]))


@needs_onnx
def test_onnx_files_answer_as_the_independent_model(tmp_path: Path) -> None:
    import onnxruntime

    adapted = make("maml").adapt(draw())
    adapted.names, adapted.preprocessing = (
        ["cat", "dog", "hen"],
        {"channels": 1, "size": 8, "mean": [0.5], "std": [0.2]},
    )
    path = adapted.export(tmp_path / "new" / "x.onnx")
    session = onnxruntime.InferenceSession(str(path))
    queries = draw_queries(1000)
    for x in (queries, queries[:1]):
        (logits,) = session.run(["logits"], {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), adapted.independent()(x), rtol=0, atol=1e-5)
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    described = json.loads(session.get_modelmeta().custom_metadata_map["metalearn"])
    assert described["names"] == ["cat", "dog", "hen"]
    assert "Each image is grey and resized to 8 x 8 pixels" in session.get_modelmeta().description
    assert [each.name for each in path.parent.iterdir()] == ["x.onnx"]


class Branching(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else -super().forward(x)


class Special(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.special.bessel_j0(x.flatten(1)))


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be exported, for torch\.export cannot trace it \(.*\); use"
    ) as caught:
        MAML(Branching(), **STEPS).adapt(draw()).exported()
    assert "\n" not in str(caught.value)


@needs_onnx
def test_an_operator_that_onnx_lacks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written as ONNX \(.*bessel_j0.*\); replace") as caught:
        ANIL(Special(), **STEPS).adapt(draw()).export(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, *args: Any) -> Any:
        return None if name == "onnx" else importlib.util.find_spec("json")

    monkeypatch.setattr("metalearn.shipping.export.find_spec", find)
    with pytest.raises(ModuleNotFoundError, match=r"need onnx, .*metalearn-lightning\[onnx\]"):
        make("anil").adapt(draw()).export(tmp_path / "x.onnx")


def test_a_compiled_model_answers_alike() -> None:
    adapted, queries = make("maml").adapt(draw()), draw_queries()
    for model in (adapted, adapted.independent()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of the parts that it leaves alone
            compiled = torch.compile(model, backend="eager")
            assert torch.equal(compiled(queries), model(queries))
