"""State dicts of older versions, in which what a solver learns stood in the module itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from metalearn import ANIL, IMAML, MAML, BilevelFewShot, MetaModule, Pooled
from tests.modules.episodic.test_evaluation import trainer
from tests.modules.episodic.test_own_algorithms import Points
from tests.networks import noise_episode

BACKBONE = ["backbone.body.0.weight", "backbone.body.0.bias", "backbone.head.weight", "backbone.head.bias"]
LEARNED = [*BACKBONE, "step_sizes.learned"]
OLD: dict[str, tuple[Callable[[nn.Module], MetaModule], list[str]]] = {
    "maml": (lambda net: MAML(net, inner_steps=2), BACKBONE),
    "maml, a list": (lambda net: MAML(net, inner_steps=2, inner_lr=[0.1, 0.2]), BACKBONE),
    "maml, a mapping": (lambda net: MAML(net, inner_steps=2, inner_lr={"body": 0.1, "head": 0.2}), BACKBONE),
    "maml, learn": (lambda net: MAML(net, inner_steps=2, inner_lr="learn"), LEARNED),
    "maml, learn_per_step": (lambda net: MAML(net, inner_steps=2, inner_lr="learn_per_step"), LEARNED),
    "maml, learn_per_element": (
        lambda net: MAML(net, inner_steps=2, inner_lr="learn_per_element"),
        [*BACKBONE, *(f"step_sizes.elements.{number}" for number in range(4))],
    ),
    "anil": (lambda net: ANIL(net, inner_steps=2), BACKBONE),
    "anil, learn": (lambda net: ANIL(net, inner_steps=2, inner_lr="learn"), LEARNED),
    "anil, learn_per_step": (lambda net: ANIL(net, inner_steps=2, inner_lr="learn_per_step"), LEARNED),
    "anil, learn_per_element": (
        lambda net: ANIL(net, inner_steps=2, inner_lr="learn_per_element"),
        [*BACKBONE, "step_sizes.elements.0", "step_sizes.elements.1"],
    ),
    "anil, ridge": (lambda net: ANIL(net, head_solver="ridge"), ["log_ridge", "scale", *BACKBONE]),
    "imaml": (lambda net: IMAML(net, inner_steps=2, linear_solver="normal_cg"), BACKBONE),
    "few-shot, softmax": (lambda net: BilevelFewShot(net, inner_steps=3), BACKBONE),
    "few-shot, ridge": (lambda net: BilevelFewShot(net, inner_steps=3, head_loss="ridge"), ["scale", *BACKBONE]),
    "pooled": (lambda net: Pooled(net, inner_steps=2), BACKBONE),
}  # fmt: skip
"""What makes a module, and the keys of its state dict in the old form, in the order in which optimisers knew parameters."""


def loader() -> Any:
    return DataLoader([noise_episode(2, shape=(4,), dtype=torch.float32, seed=i) for i in range(2)], batch_size=None)  # type: ignore[arg-type]


def age(state: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """A state dict under its old keys."""
    names = {name.removeprefix("solver."): value for name, value in state.items()}
    assert names.keys() == set(keys)
    return {name: names[name] for name in keys}


@pytest.mark.parametrize("name", OLD)
def test_an_old_state_dict_is_loaded(name: str) -> None:
    make, keys = OLD[name]
    module, again = make(Points()), make(Points())
    assert [key.removeprefix("solver.") for key, _ in module.named_parameters()] == keys
    again.load_state_dict(age(copy.deepcopy(dict(module.state_dict())), keys))
    same(again, module)


@pytest.mark.parametrize("name", ["maml, learn_per_step", "anil, ridge", "few-shot, ridge"])
def test_a_run_goes_on_from_an_old_checkpoint_as_from_a_new_one(name: str, tmp_path: Path) -> None:
    """Weights and the optimiser's moments alike; the moments are known by the place of their parameter alone."""
    make, keys = OLD[name]
    torch.manual_seed(0)
    module = make(Points())
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(module, loader(), loader())
    run.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    checkpoint["state_dict"] = age(checkpoint["state_dict"], keys)
    torch.save(checkpoint, tmp_path / "old.ckpt")

    same(type(module).load_from_checkpoint(tmp_path / "old.ckpt", backbone=Points()), module)
    ends = []
    for file in ("new.ckpt", "old.ckpt"):
        ends.append(make(Points()))
        run = trainer(tmp_path, max_steps=4, limit_val_batches=0)
        run.fit(ends[-1], loader(), loader(), ckpt_path=str(tmp_path / file))
    same(*ends)


def same(one: nn.Module, other: nn.Module) -> None:
    mine, yours = one.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[name], yours[name]) for name in mine)


def test_an_old_state_dict_is_loaded_as_a_part_of_a_larger_one() -> None:
    make, keys = OLD["anil, ridge"]
    module, whole = make(Points()), nn.ModuleDict({"inside": make(Points())})
    old = age(dict(module.state_dict()), keys)
    whole.load_state_dict({f"inside.{key}": value for key, value in old.items()})
    same(whole["inside"], module)


def test_a_parameter_of_a_subclass_keeps_a_name_that_was_ours() -> None:
    class Own(ANIL):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__(backbone, head_solver="ridge")
            self.scale = nn.Parameter(torch.tensor(7.0))

    module, again = Own(Points()), Own(Points())
    module.solver.get_parameter("scale").data.fill_(3.0)
    module.scale.data.fill_(5.0)
    again.load_state_dict(module.state_dict())
    same(again, module)


@pytest.mark.parametrize("name", OLD)
def test_every_tensor_of_a_state_dict_is_used(name: str) -> None:
    """A gradient reaches every parameter but a head that is not meta-learned."""
    make, _ = OLD[name]
    torch.manual_seed(0)
    module = make(Points()).double()
    gradient = module.meta_gradient(noise_episode(3, shape=(4,)))
    unreached = {key for key, value in gradient.items() if not bool(value.any())}
    solves = "ridge" in name or "few-shot" in name
    assert unreached <= ({"backbone.head.weight", "backbone.head.bias"} if solves else set())
    assert module.state_dict().keys() == {key for key, _ in module.named_parameters()}
