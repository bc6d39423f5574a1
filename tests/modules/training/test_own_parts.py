"""Adapters and update rules of a user's own in a checkpoint: passed again, never taken for ours, and never in its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metalearn
from metalearn import MAML, MLP, Batch, CheckpointError, ConfigError, LoRA
from metalearn.inner import Adapter, AdapterPart, UpdateRule
from tests.networks import noise_episode


class Shifted(AdapterPart):
    """Adds a shift that adapts to the bias of the head."""

    touches = ("head.bias",)

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.shift = nn.Parameter(torch.zeros_like(network.get_parameter("head.bias")))

    def moving(self) -> list[str]:
        return ["adapter:shift"]

    def merge(self, read: Any) -> dict[str, Tensor]:
        return {"head.bias": read("head.bias") + self.scale * read("adapter:shift")}


@dataclass(frozen=True)
class Shift(Adapter):
    """Of our plain types."""

    scale: float = 1.0
    alone = True

    def build(self, network: nn.Module) -> AdapterPart:
        return Shifted(network, float(self.scale))


@dataclass(frozen=True)
class Hooked(Shift):
    """With a field that no plain type holds."""

    hook: Any = None


class Plain(Adapter):
    """No dataclass."""

    def build(self, network: nn.Module) -> AdapterPart:
        return Shifted(network, 1.0)


class Wrong(Adapter):
    """Gives no part."""

    def build(self, network: nn.Module) -> Any:
        return network


class Adam(UpdateRule):
    """Called as one of ours, and another."""

    def step(self, params: Any, grads: Any, state: Any, step_sizes: Mapping[str, Any]) -> Any:
        return {name: value - step_sizes[name] * grads[name].sign() for name, value in params.items()}, state


OWN: dict[str, dict[str, Any]] = {
    "plain types": {"adapter": Shift(scale=2.0)},
    "a number of numpy's": {"adapter": Shift(scale=np.float64(2.0))},  # type: ignore[arg-type]
    "a function": {"adapter": Hooked(hook=len)},
    "a tensor": {"adapter": Hooked(hook=[torch.ones(2)])},
    "no dataclass": {"adapter": Plain()},
    "a rule": {"inner_optimizer": Adam()},
}


def save(module: MAML, folder: Path) -> Path:
    run = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                    enable_model_summary=False, accelerator="cpu", default_root_dir=folder)  # fmt: skip
    run.strategy.connect(module)
    run.save_checkpoint(folder / "own.ckpt")
    return folder / "own.ckpt"


@pytest.mark.parametrize("case", OWN)
def test_what_is_ones_own_is_passed_again(case: str, tmp_path: Path) -> None:
    own = OWN[case]
    (name,) = own
    module = MAML(MLP(outputs=3, inputs=4), inner_steps=2, inner_lr=0.1, **own)
    path = save(module, tmp_path)
    torch.load(path, weights_only=True)
    kind = type(own[name]).__name__
    line = (
        rf"{name} names the class {__name__}.{kind}, which is not built.*; pass it: load_from_checkpoint\(path, {name}="
    )
    for load in (metalearn.load, MAML.load_from_checkpoint):
        with pytest.raises(CheckpointError, match=line):
            load(path)
    (xs, ys), (xq, _) = noise_episode(1, shape=(4,), dtype=torch.float32)
    again = [MAML.load_from_checkpoint(path, **own), *([metalearn.load(path, **own)] if name == "adapter" else [])]
    for loaded in again:
        ours, other = (each.adapt(Batch(xs[0], ys[0]))(xq[0]) for each in (module, loaded))
        torch.testing.assert_close(ours, other)


def test_a_class_of_ours_is_known_by_its_path_alone() -> None:
    with pytest.raises(ConfigError, match="mine.LoRA.*use adapter=LoRA"):
        MAML(MLP(), adapter={"class_path": "mine.LoRA", "init_args": {"rank": 2}})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mine.Adam.*must be one of sgd"):
        MAML(MLP(), inner_optimizer={"class_path": "mine.Adam"})  # type: ignore[arg-type]
    described: Any = {"class_path": "metalearn.inner.LoRA", "init_args": {"rank": 1}}
    assert dict(MAML(MLP(inputs=4), adapter=described).hparams)["adapter"]["class_path"] == "LoRA"


@pytest.mark.parametrize(
    ("adapter", "line"),
    [(Wrong(), "Wrong, whose build gives a MLP.*AdapterPart"), (LoRA, r"is the class LoRA.*use adapter=LoRA\(...\)")],
)
def test_what_is_no_adapter(adapter: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        MAML(MLP(), adapter=adapter)
