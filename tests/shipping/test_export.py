"""Adapted models as programs of torch.export and as ONNX files, and compiled."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metalearn import (
    ANIL,
    MAML,
    MLP,
    AdaptedModel,
    ConfigError,
    Context,
    LoRA,
    LSTMClassifier,
    PrototypeHead,
    TransformerClassifier,
)
from metalearn.cli import main
from tests.cli.test_own_images import fill
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


def draw_tokens(count: int, seed: int = 0) -> Tensor:
    tokens = torch.randint(1, 20, (count, 6), generator=torch.Generator().manual_seed(seed))
    return tokens.where(torch.arange(6) < torch.arange(count)[:, None] % 6 + 1, 0)


def adapt(network: nn.Module, x: Tensor | None = None, y: Tensor | None = None, **options: Any) -> AdaptedModel:
    support = draw()
    module = MAML(network, **{**STEPS, **options})  # type: ignore[arg-type]
    return module.adapt((support.x if x is None else x, support.y if y is None else y))


def adapt_values() -> AdaptedModel:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return adapt(MLP(2, 4, hidden=[8]), x, x[:, :1], loss="gaussian_nll", inner_lr=0.1)


MODELS: dict[str, Callable[[], AdaptedModel]] = {
    "lora": lambda: adapt(Normed(), adapter=LoRA(2)),
    "context": lambda: adapt(Normed(), adapter=Context(3, layers="norm")),
    "prototypes": lambda: adapt(Normed(), adapter=PrototypeHead()),
    "lstm": lambda: adapt(LSTMClassifier(3, 20, 4, 4), draw_tokens(6)),
    "transformer": lambda: adapt(TransformerClassifier(3, 20, width=8, heads=2, layers=1), draw_tokens(6)),
    "gaussian": adapt_values,
}
QUERIES: dict[str, Callable[[int], Tensor]] = {
    **dict.fromkeys(("lstm", "transformer"), lambda count: draw_tokens(count, 1)),
    "gaussian": lambda count: torch.randn(count, 4, generator=torch.Generator().manual_seed(1)),
}


@needs_onnx
@pytest.mark.parametrize("name", ["anil", "ridge", "group", "support", *MODELS])
def test_exported_networks_are_within_the_rounding_of_the_model(name: str, tmp_path: Path) -> None:
    """On 1,000 random queries, one by one and together, by onnxruntime and by torch."""
    import onnxruntime

    torch.manual_seed(0)
    adapted = MODELS[name]() if name in MODELS else make(name).adapt(draw())
    model, program = adapted.independent(), adapted.exported().module()
    session = onnxruntime.InferenceSession(str(adapted.export(tmp_path / "x.onnx")))
    queries = QUERIES.get(name, draw_queries)(1000)
    for x in (queries, queries[:1], queries[1:4]):
        expected = model(x)
        scale = max(1.0, float(expected.abs().max()))
        for outputs in (torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0]), program(x)):
            torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5 * scale)


class Branching(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else -super().forward(x)


@needs_onnx
def test_an_exported_classifier_answers_as_the_table_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For images that are read as the file's description says."""
    import onnxruntime

    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["predict", "--ckpt_path", "anil.ckpt", "--support", "S", "--query", "Q", "--export", "a.onnx"])
    table = np.genfromtxt("predictions/predictions.csv", delimiter=",", skip_header=1)[:, 2:]
    images = [np.asarray(Image.open(f"Q/{index}.png").resize((28, 28), Image.Resampling.LANCZOS)) for index in range(3)]
    x = (np.stack(images)[:, None] / 255).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession("a.onnx").run(["logits"], {"x": x})
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), table, rtol=0, atol=1e-5)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) + x.new_zeros(len(x), 3)


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
    with pytest.raises(ConfigError, match=r"the number of the queries: x\.shape\[0\] is traced, len\(x\) is not"):
        MAML(Counting(), **STEPS).adapt(draw()).exported()


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


class Refusing:
    """Stands for packages of ONNX that cannot write what torch has made."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("Error calling serialize_model") from TypeError("Expected an int, got a boolean")


@needs_onnx
def test_versions_that_do_not_go_together_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: Refusing())
    with pytest.raises(
        ConfigError, match=r"\(Expected an int, got a boolean\), with torch .* and onnxscript .*; bring both"
    ):
        make("anil").adapt(draw()).export(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["maml", "lora", "context"])
def test_a_compiled_model_answers_alike(name: str) -> None:
    adapted, queries = (MODELS[name] if name in MODELS else lambda: make(name).adapt(draw()))(), draw_queries()
    for model in (adapted, adapted.independent()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of the parts that it leaves alone
            compiled = torch.compile(model, backend="eager")
            assert torch.equal(compiled(queries), model(queries))


def test_a_module_that_has_not_adapted_is_refused() -> None:
    """Lightning offers both of every module."""
    module = MAML(MLP(), loss="mse")
    for call, remedy in ((module.to_onnx, r"export\('model.onnx'\)"), (module.to_torchscript, r"exported\(\)")):
        with pytest.raises(ConfigError, match=rf"no exported format holds; export.*module.adapt\(support\).{remedy}"):
            call("x.onnx")
