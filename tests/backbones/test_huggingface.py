"""Encoders of transformers: trained and used from the command line, and one that is not on the list, wrapped by a user."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import MAML, Batch, Episode
from metalearn.cli import main
from metalearn.datamodules.topics import TOPICS
from tests.made_bilevel import make_topics

transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is an extra")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def test_a_small_bert_is_trained_tested_and_asked_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config alone is given; its checkpoint needs no file of that any more."""
    monkeypatch.chdir(tmp_path)
    make_topics(tmp_path, [topic for topics in TOPICS.values() for topic in topics], each=6)
    transformers.BertConfig(vocab_size=200, **SIZES).save_pretrained(tmp_path / "bert")
    few = {"ways": 2, "shots": 2, "queries": 2, "length": 8, "vocabulary": 200, "tasks_per_batch": 2, "train_tasks": 4,
           "val_tasks": 2, "test_tasks": 2, "root": "."}  # fmt: skip
    data = [word for option, value in few.items() for word in (f"--data.{option}", str(value))]
    model = ["--model", "MAML", "--model.adapts", "head", "--model.inner_steps", "1", "--model.backbone", "HuggingFace",
             "--model.backbone.config", "bert"]  # fmt: skip
    main(["fit", *model, "--data", "NewsgroupTopicsDataModule", *data, "--trainer.max_steps", "2", "--run_name", "bert",
          "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])  # fmt: skip
    assert "2 tasks)" in capsys.readouterr().out
    (tmp_path / "bert" / "config.json").unlink()
    best = ["--ckpt_path", "runs/bert/version_0/checkpoints/best.ckpt", "--trainer.accelerator", "cpu"]
    main(["test", *best])
    assert "2 tasks)" in capsys.readouterr().out
    main(["predict", *best])
    path = next(word for word in capsys.readouterr().out.split() if word.endswith("predictions.csv"))
    with Path(path).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4
    assert all(abs(float(row["p0"]) + float(row["p1"]) - 1) < 1e-5 for row in rows)


class Wrapped(nn.Module):
    """What the documents advise for an encoder that is not on the list."""

    def __init__(self, encoder: nn.Module, width: int, ways: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, ways)

    def forward(self, x: Tensor) -> Tensor:
        states = self.encoder(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state
        return self.head(states.mean(1))


def test_an_encoder_of_another_type_is_wrapped_by_the_user() -> None:
    """Its meta-gradient is that of a plain loop."""
    config: Any = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    network = Wrapped(transformers.GPT2Model(config), 16, 2).double()
    part = Batch(torch.randint(1, 30, (1, 4, 5)), torch.arange(2).repeat(2)[None])
    own = MAML(network, inner_steps=1, inner_lr=0.1).meta_gradient(Episode(part, part))
    params = dict(network.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(network, weights, (part.x[0],)), part.y[0])

    grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
    adapted = {name: params[name] - 0.1 * grad for name, grad in zip(params, grads, strict=True)}
    expected = torch.autograd.grad(loss(adapted), list(params.values()))
    for name, grad in zip(params, expected, strict=True):
        assert (own[f"backbone.{name}"] - grad).abs().max() <= 1e-9 * max(1.0, float(grad.abs().max())), name
