"""``metalearn predict`` of more classes than in training: how many inner steps, and how long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn import Batch, ProtoNet
from metalearn.cli import main
from metalearn.datamodules.sources.folders import read_queries, read_support
from metalearn.datamodules.sources.images import to_float
from metalearn.image_classifier import load_module
from tests.cli.test_own_images import SHIPPED, fill, refused, write

NOTE = "apart: 2 inner steps of its sizes may leap over the minimum; compare rescale_steps(0.5)"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    for index in range(4):
        (tmp_path / f"S/more{index}").symlink_to(tmp_path / f"S/{('bar', 'cross', 'dot', 'bar')[index]}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("options", "steps", "factor"), [
    ("", None, 1.0), ("--inner_steps 2", 2, 1.0), ("--inner_steps 3 --rescale_steps 0.25", 3, 0.25), ("--inner_steps 0", 0, 1.0),
])  # fmt: skip
def test_predict_adapts_as_the_module_does(options: str, steps: int | None, factor: float) -> None:
    main(["predict", "--ckpt_path", SHIPPED, "--support", "S", "--query", "Q", *options.split()])
    table = np.genfromtxt("predictions/predictions.csv", delimiter=",", skip_header=1)[:, 2:]
    module, spec = load_module(SHIPPED)
    module.rescale_steps(factor)
    images, labels, names = read_support(Path("S"), spec)
    adapted = module.adapt(Batch(to_float(images, spec), torch.from_numpy(labels)), steps=steps, ways=len(names))
    queries, _ = read_queries(Path("Q"), spec)
    np.testing.assert_allclose(table, adapted(to_float(queries, spec)).softmax(-1).numpy(), rtol=0, atol=1e-5)


def test_several_steps_at_more_ways_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    module, _ = load_module(SHIPPED)
    support = Batch(torch.rand(7, 1, 28, 28), torch.arange(7))
    with caplog.at_level("INFO"):
        module.adapt(support, steps=1, ways=7)  # one step is as long as it was learned
        module.adapt(Batch(support.x[:5], support.y[:5]), steps=2)  # as many classes as in training
        assert NOTE not in caplog.text
        module.adapt(support, steps=2, ways=7)
        module.adapt(support, steps=2, ways=7)
    assert caplog.text.count(f"7 classes, where the network tells 5 {NOTE}") == 1


def test_who_has_chosen_the_sizes_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    module, _ = load_module(SHIPPED)
    module.rescale_steps(0.5)
    with caplog.at_level("INFO"):
        module.adapt(Batch(torch.rand(7, 1, 28, 28), torch.arange(7)), steps=2, ways=7)
    assert NOTE not in caplog.text


def test_what_cannot_be_done_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write(ProtoNet, Path("protonet.ckpt"))
    for words, line in {
        f"--ckpt_path {SHIPPED} --support S --query Q --rescale_steps 0": "is 0.0, but it must be a finite number above 0",
        f"--ckpt_path {SHIPPED} --support S --query Q --rescale_steps nan": "is nan, but it must be a finite number above 0",
        f"--ckpt_path {SHIPPED} --support S --query Q --inner_steps -1": "steps is -1, but it must be a whole number, at least 1",
        f"--ckpt_path {SHIPPED} --support S --query Q --inner_step 1": "did you mean --inner_steps?",
        "--ckpt_path protonet.ckpt --support S --query Q --rescale_steps 0.5": "ProtoNet has no step sizes of its own",
        "--adapted x --query Q --inner_steps 2": "--inner_steps says how a network adapts, but there is no --support",
    }.items():
        assert line in refused(capsys, words)
