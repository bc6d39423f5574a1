"""The script that trains beside learn2learn: the same weights on the same tasks stay the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.benchmarks  # noqa: F401  the folder of scripts
from tests.datamodules.made_miniimagenet import table, write_folder
from tests.made import make_omniglot

# what learn2learn says of itself on today's Python and torch
pytestmark = pytest.mark.filterwarnings("ignore")
Curve = Callable[..., list[dict[str, float]]]


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Curve:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed: .ci/build_learn2learn builds it")
    import learn2learn_accuracy

    def run(*arguments: object, name: str = "curve.json") -> list[dict[str, float]]:
        output = tmp_path / name
        words = ["script", "--steps", 2, "--every", 1, "--test_tasks", 3, *arguments, "--output", output]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        learn2learn_accuracy.main()
        rows: list[dict[str, float]] = json.loads(output.read_text())
        return rows

    return run


def learned(*states: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The parameters in order, without running statistics, which are no part of the comparison."""
    return [value for state in states for name, value in state.items() if name.endswith((".weight", ".bias"))]


@pytest.mark.parametrize("config", ["maml_miniimagenet_5w1s", "anil_miniimagenet_5w1s"])
def test_both_learn_the_same(config: str, curve: Curve, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mini", table(classes=15, images=16))
    rows = curve("--config", config, "--root", root, "--tasks_per_batch", 1, "--precision", "64-true")
    assert [row["steps"] for row in rows] == [1, 2]
    for row in rows:
        assert row["tasks"] == 3
        # the images are noise: in float32 rounding turns some queries
        assert row["ours"] == pytest.approx(row["theirs"], abs=1e-6)
        assert row["ours_seconds"] > 0
        assert row["theirs_seconds"] > 0
    saved = torch.load(tmp_path / "curve.ckpt", weights_only=True)
    (beside,) = (state for name, state in saved["callbacks"].items() if name.startswith("Beside"))
    ours, theirs = (learned(*states) for states in ([saved["state_dict"]], [beside["body"], beside["maml"]]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)  # accuracies of so few steps tell less


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on(
    done: int, curve: Curve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the test that comes after two steps, right after it, and later."""
    import learn2learn_accuracy

    def stop(*arguments: object) -> None:
        nonlocal left
        if not left:
            raise OSError("the machine goes away")
        left -= 1
        take_step(*arguments)

    left = done
    take_step: Callable[..., None] = learn2learn_accuracy.take_step
    root = make_omniglot(tmp_path / "omniglot", alphabets=6, characters=10, drawings=8)
    few = ("--minutes", 0, "--steps", 4, "--every", 2, "--tasks_per_batch", 2)
    words = ("--config", "maml_omniglot_5w1s", "--documented", "--root", root, *few)
    monkeypatch.setattr(learn2learn_accuracy, "take_step", stop)
    with pytest.raises(OSError, match="the machine goes away"):
        curve(*words, name="parts.json")
    monkeypatch.setattr(learn2learn_accuracy, "take_step", take_step)
    parts, whole = curve(*words, name="parts.json"), curve(*words, name="whole.json")
    assert [row["steps"] for row in parts] == [row["steps"] for row in whole] == [2, 4]
    for one, other in zip(parts, whole, strict=True):
        assert one["ours"] == pytest.approx(other["ours"], abs=1e-6)
        assert one["theirs"] == pytest.approx(other["theirs"], abs=1e-6)
    assert parts[1]["theirs_seconds"] > parts[0]["theirs_seconds"]
    with pytest.raises(SystemExit, match=r"parts.json is of a run with .*; use another --output"):
        curve(*words[:-1], 1, name="parts.json")
    assert json.loads((tmp_path / "parts.json").read_text()) == parts


def test_theirs_by_its_documented_settings(curve: Curve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example takes one inner step of 0.5, in training and at test, where our config has three at test."""
    from learn2learn.algorithms import MAML

    def adapt(self: Any, *arguments: Any, **options: Any) -> None:
        sizes.append(self.lr)
        once(self, *arguments, **options)

    once, sizes = MAML.adapt, list[float]()
    monkeypatch.setattr(MAML, "adapt", adapt)
    root = make_omniglot(tmp_path / "omniglot", alphabets=6, characters=10, drawings=8)
    rows = curve("--config", "maml_omniglot_5w1s", "--documented", "--root", root, "--tasks_per_batch", 2)
    assert [row["steps"] for row in rows] == [1, 2]
    assert sizes == [0.5] * (2 * 2 + 2 * 3)  # two steps on two tasks, and two tests of three


@pytest.mark.parametrize("network", ["OmniglotFC", "OmniglotCNN"])
def test_both_by_the_documented_settings_learn_the_same(network: str, curve: Curve, tmp_path: Path) -> None:
    """Our loop on learn2learn's own network, at the numbers of its example."""
    root = make_omniglot(tmp_path / "omniglot", alphabets=6, characters=10, drawings=8)
    words = ("--documented", "both", "--network", network, "--queries", 1, "--tasks_per_batch", 2)
    rows = curve("--config", "maml_omniglot_5w1s", *words, "--root", root, "--precision", "64-true")
    for row in rows:
        assert row["ours"] == pytest.approx(row["theirs"], abs=1e-6)
    saved = torch.load(tmp_path / "curve.ckpt", weights_only=True)
    (beside,) = (state for name, state in saved["callbacks"].items() if name.startswith("Beside"))
    ours, theirs = learned(saved["state_dict"]), learned(beside["maml"])
    # steps are of 3e-3; of a bias before normalisation the gradient is 0, and Adam makes small steps of its rounding
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    assert len(ours) >= 10


def test_learned_step_sizes_have_no_twin(curve: Curve, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="learn2learn learns no step sizes; use maml_miniimagenet_5w1s"):
        curve("--config", "maml_omniglot_5w1s", "--root", tmp_path)
