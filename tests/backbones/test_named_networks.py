"""Networks of other libraries by name: their head is found, weights come from a file, and what is wrong is one line."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchvision
from torch import Tensor, nn

import metalearn
from metalearn import (
    MAML,
    Batch,
    CheckpointError,
    ConfigError,
    Episode,
    HuggingFace,
    ShapeError,
    Timm,
    Torchvision,
)
from metalearn.carried import build_network
from metalearn.cli import main

pytestmark = pytest.mark.long

NO_TIMM = "timm is not installed; it is an extra"
NO_TRANSFORMERS = "transformers is not installed; it is an extra"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 30, **SIZES, **STILL}
VIT: dict[str, Any] = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES, **STILL}
SHUFFLENET = "shufflenet_v2_x0_5"
COLOUR = torch.randn(3, 3, 32, 32)


def build(kind: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    if kind is Timm:
        pytest.importorskip("timm", reason=NO_TIMM)
    if kind is HuggingFace:
        pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    return kind(*args, **options).eval()


NAMED = [
    (Torchvision, SHUFFLENET, {}), (Torchvision, "mobilenet_v3_small", {}), (Timm, "test_resnet", {}),
    (Timm, "test_vit", {"image_size": 32}), (Timm, "test_convnext", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "options"), NAMED)
def test_the_last_layer_is_the_head(kind: type[nn.Module], name: str, options: dict[str, Any]) -> None:
    network = build(kind, name, ways=4, **options)
    assert isinstance(network.head, nn.Linear)
    seen: list[Tensor] = []
    network.head.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    logits = network(COLOUR)
    assert logits.shape == (3, 4)
    assert logits is seen[0]
    assert torch.equal(network(COLOUR[:, :1]), network(COLOUR[:, :1].repeat(1, 3, 1, 1)))


def test_pretrained_weights_give_what_the_library_gives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = torchvision.models.get_model(SHUFFLENET, weights=None).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in original.state_dict().items()}}, tmp_path / "wrapped.pt")
    features = nn.Sequential(*list(original.children())[:-1])
    for file in ("weights.pth", "wrapped.pt"):
        with caplog.at_level(logging.INFO, "lightning.pytorch.backbones"):
            network = build(Torchvision, SHUFFLENET, ways=3, weights=str(tmp_path / file))
        expected = features(COLOUR).mean((2, 3)) @ network.head.weight.T + network.head.bias  # type: ignore[union-attr, operator]
        torch.testing.assert_close(network(COLOUR), expected)
        assert f"{SHUFFLENET}: the head is its layer fc, with 1024 features and 3 outputs" in caplog.text
        assert "its 2 head tensors (fc) are left out" in caplog.text


def test_pretrained_weights_of_timm_and_transformers(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason=NO_TIMM)
    transformers = pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    from safetensors.torch import save_file

    original = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(original.state_dict(), tmp_path / "timm.safetensors")
    network = build(Timm, "test_resnet", ways=3, weights=str(tmp_path / "timm.safetensors"))
    features = original.forward_head(original.forward_features(COLOUR), pre_logits=True)
    torch.testing.assert_close(network(COLOUR), network.head(features))  # type: ignore[operator]

    fields = {name: value for name, value in BERT.items() if name != "model_type"}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**fields)).eval()
    bert.save_pretrained(tmp_path / "bert")
    tokens = torch.tensor([[4, 8, 15, 16], [23, 27, 0, 0]])
    states = bert.bert(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    expected = torch.stack([states[0].mean(0), states[1, :2].mean(0)])
    for options in ({}, {"weights": str(tmp_path / "bert" / "model.safetensors")}):
        config = str(tmp_path / "bert") if not options else BERT
        own = build(HuggingFace, config, ways=3, **options)
        torch.testing.assert_close(own(tokens), own.head(expected))  # type: ignore[operator]
    untrained = build(HuggingFace, str(tmp_path / "bert" / "config.json"), ways=3)
    assert not torch.equal(
        untrained.network.embeddings.word_embeddings.weight, bert.bert.embeddings.word_embeddings.weight
    )  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [BERT, VIT], ids=["bert", "vit"])
def test_meta_gradients_of_encoders_are_exact(fields: dict[str, Any]) -> None:
    network = build(HuggingFace, fields, ways=2).double()
    torch.manual_seed(0)
    x = torch.randint(1, 30, (1, 4, 5)) if fields is BERT else torch.randn(1, 4, 3, 16, 16, dtype=torch.float64)
    if fields is BERT:
        x[:, ::2, 3:] = 0
    part = Batch(x, torch.arange(2).repeat(2)[None])
    own = MAML(network, inner_steps=1, inner_lr=0.1).meta_gradient(Episode(part, part))
    params = dict(network.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(network, weights, (x[0],)), part.y[0])

    grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
    adapted = {name: params[name] - 0.1 * grad for name, grad in zip(params, grads, strict=True)}
    expected = torch.autograd.grad(loss(adapted), list(params.values()))
    for name, grad in zip(params, expected, strict=True):
        assert (own[f"backbone.{name}"] - grad).abs().max() <= 1e-9 * max(1.0, float(grad.abs().max())), name


def test_a_checkpoint_describes_them_without_files(tmp_path: Path) -> None:
    torch.save(torchvision.models.get_model(SHUFFLENET, weights=None).state_dict(), tmp_path / "weights.pt")
    network = build(Torchvision, SHUFFLENET, ways=3, weights=str(tmp_path / "weights.pt"))
    description = {"class_path": "metalearn.Torchvision", "init_args": network.init_args}
    assert network.init_args["weights"] is None  # type: ignore[index]
    again = build_network(description, 10**9, "the backbone")
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(COLOUR), network(COLOUR))
    hostile = {"class_path": "Torchvision", "init_args": {"name": SHUFFLENET, "weights": "/dev/zero"}}
    build_network(hostile, 10**9, "the backbone")
    if build(HuggingFace, BERT) is not None:
        build_network({"class_path": "HuggingFace", "init_args": {"config": BERT}}, 10**9, "the backbone")


@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf"])
def test_a_network_that_computes_its_widths_is_built_from_a_checkpoint(name: str) -> None:
    """Its size is known before it takes any memory, although its constructor reads numbers out of tensors."""
    description = {"class_path": "metalearn.Torchvision", "init_args": {"name": name, "ways": 3}}
    size = sum(value.numel() for value in Torchvision(name, ways=3).parameters())
    assert sum(value.numel() for value in build_network(description, size, "the backbone").parameters()) == size
    with pytest.raises(CheckpointError, match=f"describes a network of {size:,} weights, but there are {size - 1:,}"):
        build_network(description, size - 1, "the backbone")


def test_a_network_whose_layers_have_versions_is_loaded(tmp_path: Path) -> None:
    """MNASNet loads nothing without the version of its layers, which a file of plain types has not."""
    module = MAML(Torchvision("mnasnet0_5", ways=3), norm="running")
    run = L.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "versions.ckpt")
    again = metalearn.load(tmp_path / "versions.ckpt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def wrong_files(folder: Path) -> dict[str, Any]:
    state = torchvision.models.get_model(SHUFFLENET, weights=None).state_dict()
    torch.save({**state, "more.weight": torch.ones(1)}, folder / "more.pt")
    torch.save({name: value for name, value in state.items() if name != "conv1.0.weight"}, folder / "less.pt")
    torch.save({**state, "conv1.0.weight": torch.ones(2)}, folder / "shape.pt")
    torch.save({**state, "conv1.0.weight": state["conv1.0.weight"] * torch.nan}, folder / "nan.pt")
    torch.save({"epoch": 3}, folder / "other.pt")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (folder / "cut.pt").write_bytes((folder / "more.pt").read_bytes()[:1000])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.safetensors").write_text("weights")
    return {
        "more.pt": "0 tensors are missing, 1 tensors are unexpected (more.weight)",
        "less.pt": "1 tensors are missing (conv1.0.weight)",
        "shape.pt": "conv1.0.weight of shape [2]",
        "nan.pt": "not finite",
        "other.pt": "more than tensors by name",
        "evil.pt": "cannot be read as plain tensors",
        "cut.pt": "cannot be read as plain tensors",
        "empty.pt": "cannot be read as plain tensors",
        "text.safetensors": "cannot be read",
        "none.pt": "is no file",
    }


def test_weights_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, words in wrong_files(tmp_path).items():
        if file.endswith(".safetensors"):
            pytest.importorskip("safetensors", reason="safetensors is not installed; it comes with timm")
        with pytest.raises(CheckpointError) as caught:
            Torchvision(SHUFFLENET, ways=3, weights=str(tmp_path / file))
        line = str(caught.value)
        assert words in line
        assert "\n" not in line
        assert "; " in line
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "args", "options", "words"),
    [
        (Torchvision, ("resnet81",), {}, "resnet18"),
        (Torchvision, ("squeezenet1_1",), {}, "does not end in a linear layer"),
        (Torchvision, ("resnet18",), {"image_size": 64}, "takes images of any size; leave image_size out"),
        (Torchvision, ("vit_b_32",), {"image_size": 33}, "cannot be built for it"),
        (Timm, ("test_resnt",), {}, "test_resnet"),
        (Timm, ("dpn48b",), {}, "does not end in a linear layer"),
        (Timm, ("test_resnet",), {"image_size": 64}, "leave image_size out"),
        (HuggingFace, ("bert-base-uncased",), {}, "nothing is downloaded"),
        (HuggingFace, ({"model_type": "llama"},), {}, "must be one of albert, bert"),
        (HuggingFace, ({**BERT, "num_attention_heads": 3},), {}, "config gives no bert"),
    ],
)
def test_names_that_are_refused(
    kind: type[nn.Module], args: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(kind, *args, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_other_channels_are_one_line() -> None:
    network = build(Torchvision, SHUFFLENET)
    with pytest.raises(ShapeError, match=r"takes 3 channels, or 1, which is repeated; read images with channels=3"):
        network(torch.zeros(2, 4, 32, 32))
    with pytest.raises(ShapeError, match="takes images"):
        MAML(network).adapt(Batch(torch.zeros(5, 8), torch.arange(5)))


@pytest.mark.parametrize("kind", ["Torchvision", "Timm"])
def test_they_are_trained_from_the_command_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "Timm":
        pytest.importorskip("timm", reason=NO_TIMM)
    monkeypatch.chdir(tmp_path)
    name = {"Torchvision": SHUFFLENET, "Timm": "test_resnet"}[kind]
    torch.save(torchvision.models.get_model(SHUFFLENET, weights=None).state_dict(), tmp_path / "weights.pt")
    weights = ["--model.backbone.weights", "weights.pt"] if kind == "Torchvision" else []
    few = {"ways": 3, "shots": 1, "queries": 1, "tasks_per_batch": 1, "train_tasks": 2, "val_tasks": 1, "test_tasks": 2}
    data = [word for option, value in few.items() for word in (f"--data.{option}", str(value))]
    main(["fit", "--model", "ANIL", "--model.backbone", kind, "--model.backbone.name", name, *weights,
          "--model.inner_steps", "1", "--data", "GlyphsDataModule", *data, "--trainer.max_steps", "2",
          "--trainer.accelerator", "cpu", "--run_name", "named", "--trainer.enable_progress_bar", "false"])  # fmt: skip
    assert "2 tasks)" in capsys.readouterr().out
    (tmp_path / "weights.pt").unlink()
    main(["test", "--ckpt_path", "runs/named/version_0/checkpoints/best.ckpt", "--trainer.accelerator", "cpu"])
    assert "2 tasks)" in capsys.readouterr().out
