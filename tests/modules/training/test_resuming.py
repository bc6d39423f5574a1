"""What a run goes on from: every key of the training state, put wrong in every way, is one line before anything has begun."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from torch.utils.data import DataLoader

from metalearn import MAML, CheckpointError, ConfigError, Conv4
from metalearn.modules.training.resuming import check_before
from tests.modules.training.test_checkpoints import BigNoise
from tests.networks import TinyConv, noise_episode

WRONG: dict[str, Any] = {
    "none": None, "a negative number": -3, "text": "x", "a list": ["x"], "a dict": {"x": 1}, "huge": 10**30, "nan": math.nan,
    "whole tensor": torch.zeros(3, dtype=torch.int64), "tensor of another shape": torch.zeros(2, 9), "missing": ...,
}  # fmt: skip
Keys = tuple[Any, ...]
FREE = {
    ("hparams_name",), ("lr_schedulers", 0, "_is_initial"), ("lr_schedulers", 0, "_get_lr_called_within_step"),
    ("lr_schedulers", 0, "_step_count"), ("lr_schedulers", 0, "_last_lr"), ("lr_schedulers", 0, "last_epoch"),
}  # fmt: skip


def built() -> tuple[MAML, L.Trainer]:
    module = MAML(
        Conv4(3, hidden=4, image_size=16), inner_steps=1,
        outer_optimizer=lambda params: torch.optim.Adam(params, lr=1e-3, amsgrad=True),
        outer_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5),
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.9), ModelCheckpoint(monitor="val/acc", mode="max")],
    )  # fmt: skip
    return module, trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    module, trainer = built()
    folder = tmp_path_factory.mktemp("saved")
    trainer.callbacks[-1].dirpath = str(folder)  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=BigNoise(train_tasks=4))
    trainer.save_checkpoint(folder / "saved.ckpt")
    return dict(torch.load(folder / "saved.ckpt", weights_only=True))


def keys(value: Any, above: Keys = ()) -> Iterator[Keys]:
    """Where every part of a tree stands."""
    if above:
        yield above
    if isinstance(value, dict):
        for name in value:
            yield from keys(value[name], (*above, name))
    elif isinstance(value, list):
        for number in range(len(value)):
            yield from keys(value[number], (*above, number))


def put(tree: Any, where: Keys, value: Any) -> Any:
    """A copy of the tree in which one part is another; what is beside it is shared."""
    first, *rest = where
    changed = copy.copy(tree)
    if rest:
        changed[first] = put(tree[first], tuple(rest), value)
    elif value is ...:
        del changed[first]
    else:
        changed[first] = value
    return changed


def test_what_a_run_wrote_is_taken(saved: dict[str, Any]) -> None:
    module, trainer = built()
    before = copy.deepcopy(module.state_dict())
    check_before(module, trainer, copy.deepcopy(saved), trains=True)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def needed(where: Keys, saved: dict[str, Any]) -> bool:
    """Whether a run reads this part."""
    first, *rest = where
    if first in ("state_dict", "current_model_state"):  # as a whole: tests/carried/test_files.py
        return rest[:1] in (["backbone.head.weight"], ["backbone.body.0.norm.running_mean"])
    if first == "loops":
        return rest[:1] in ([], ["fit_loop"]) and not ("state_dict" in where[2:3] and len(where) > 3)
    if first == "optimizer_states" and "state" in where and len(where) > 3 and where[3] not in (0, 13):
        return False
    if first == "optimizer_states":
        return (
            "params" not in where[:-1] and not ("param_groups" in where and len(where) > 4) and where[2:] != ("state",)
        )
    return first in ("lr_schedulers", "averaging_state") and where not in FREE


def harmless(where: Keys, name: str) -> bool:
    """Whether a part that is put wrong is one that some run could have."""
    if name == "a dict":
        return where[-1].endswith("state_dict") if isinstance(where[-1], str) else False
    if where[:3] == ("optimizer_states", 0, "state"):  # a frozen parameter, a long run, numbers that are cast
        return len(where) == 4 or where[-1] == "step" or (where[3] == 13 and name == "whole tensor")
    return where[0] == "lr_schedulers" and name in ("a negative number", "huge")


def test_every_key_put_wrong_is_one_line(saved: dict[str, Any]) -> None:
    module, trainer = built()
    accepted = []
    tried = 0
    for where in keys(saved):
        for name, value in WRONG.items() if needed(where, saved) else ():
            tried += 1
            try:
                check_before(module, trainer, put(saved, where, value), trains=True)
            except CheckpointError as error:
                if "\n" in str(error) or len(str(error)) > 500:
                    accepted.append((where, name, str(error)))
            else:
                accepted += [] if harmless(where, name) else [(where, name, "")]
    assert tried > 900
    assert accepted == []


def test_an_optimizer_of_another_kind(saved: dict[str, Any]) -> None:
    module, trainer = built()
    module.outer_optimizer = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
    other = MAML(Conv4(3, hidden=5, image_size=16), inner_steps=1)
    with pytest.raises(CheckpointError, match="optimizer_states are not of this SGD"):
        check_before(module, trainer, saved, trains=True)
    with pytest.raises(CheckpointError, match="another architecture"):
        check_before(other, trainer, saved, trains=True)


HELD: dict[str, tuple[str, Any]] = {
    "a class": ("inner_optimizer", "evil_of_a_checkpoint.X"),
    "a described class": ("inner_optimizer", {"class_path": "evil_of_a_checkpoint.X", "init_args": {}}),
    "a function": ("loss", "evil_of_a_checkpoint.f"), "steps": ("inner_steps", 10**9), "a list of steps": ("inner_steps", [1]),
    "not finite": ("inner_weight_decay", math.inf), "a tensor": ("inner_lr", torch.zeros(3)), "text": ("first_order", "x"),
    "long": ("inner_lr", [0.1] * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_hyper_parameters_are_checked(name: str, saved: dict[str, Any], tmp_path: Path) -> None:
    argument, value = HELD[name]
    torch.save(put(saved, ("hyper_parameters", argument), value), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=f"hyper_parameters.{argument} "):
        MAML.load_from_checkpoint(tmp_path / "x.ckpt")


def test_nothing_that_lightning_would_call_is_called(saved: dict[str, Any], tmp_path: Path) -> None:
    """Lightning looks up what builds the module in the checkpoint's hyper-parameters."""
    held = {**saved["hyper_parameters"], "_instantiator": "os.system", "_class_path": "os.system", "unknown": 1}
    changed = {**saved, "hyper_parameters": held, "hparams_type": "os.system", "hparams_name": "backbone"}
    torch.save(changed, tmp_path / "x.ckpt")
    assert MAML.load_from_checkpoint(tmp_path / "x.ckpt").inner_steps == 1


def test_arguments_given_count_more_than_those_held(saved: dict[str, Any], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.ckpt")
    module = MAML.load_from_checkpoint(tmp_path / "x.ckpt", eval_inner_steps=3, map_location="cpu")
    assert (module.inner_steps, module.eval_inner_steps) == (1, 3)
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in module.state_dict().items())
    with pytest.raises(ConfigError, match="weights_only is False"):
        MAML.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)


class Diary(L.Callback):
    """A user's own callback, whose state grows and changes its kind."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.best: float | None = None
        self.seen: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.best = min(self.losses)
        self.seen[f"step {trainer.global_step}"] = {"loss": self.losses[-1]} if len(self.losses) > 1 else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": [*self.losses],
            "best": self.best,
            "seen": dict(self.seen),
            "late": [0] if len(self.losses) > 2 else "no",
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.best, self.seen = state_dict["losses"], state_dict["best"], state_dict["seen"]


class Unfreezing(BaseFinetuning):
    """The head alone learns in the first epoch, as a user might write it."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone.body)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone.body, optimizer, lr=1e-3)


CALLBACKS: dict[str, Any] = {
    "a user's own": Diary,
    "Timer": Timer,
    "EarlyStopping": lambda: EarlyStopping("train/loss", patience=1, min_delta=9.0, check_on_train_epoch_end=True),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1),
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.9),
    "BaseFinetuning": Unfreezing,
}
EXACT = ("a user's own", "Timer", "EMAWeightAveraging")
"""Those with which Lightning goes on as if it had not stopped."""


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:Swapping scheduler", "ignore:The provided params")
@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_whose_state_grows(name: str, tmp_path: Path) -> None:
    """An earlier checkpoint is tested with what has trained since, and gone on from with what is new."""
    weights = []
    for path in (None, tmp_path / "step=2.ckpt"):
        L.seed_everything(0, verbose=False)
        watched = CALLBACKS[name]()
        module = MAML(
            Conv4(3, hidden=4, image_size=16), inner_steps=1,
            outer_optimizer=lambda params: torch.optim.Adam([value for value in params if value.requires_grad], lr=1e-3),
        )  # fmt: skip
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[watched, saver], limit_val_batches=0, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=BigNoise(train_tasks=8), ckpt_path=path)
        weights.append(torch.cat([value.detach().flatten() for value in module.parameters()]))
        trainer.test(module, datamodule=BigNoise(train_tasks=8), ckpt_path=tmp_path / "step=1.ckpt", verbose=False)
        if isinstance(watched, Diary):
            assert len(watched.losses) == 1  # Lightning gives back what the checkpoint says
    if name in EXACT:
        torch.testing.assert_close(*weights)


class Stateful(DataLoader[Any]):
    """A user's own loader with a position of its own kind."""

    def __init__(self, position: Any) -> None:
        super().__init__([noise_episode(2, seed=seed, dtype=torch.float32) for seed in range(3)], batch_size=None)  # type: ignore[arg-type]
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": "third", "position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"] * 2


@pytest.mark.filterwarnings("ignore:You defined a")
def test_a_loader_of_a_users_own_goes_on(tmp_path: Path) -> None:
    loaders = Stateful(21), Stateful(0)
    for steps, loader in zip((2, 3), loaders, strict=True):  # Lightning gives it back within an epoch alone
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(MAML(TinyConv(), inner_steps=1), loader, ckpt_path=tmp_path / "saved.ckpt" if steps > 2 else None)
        if steps == 2:
            trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert loaders[1].position == 42
    taken = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    data = BigNoise(train_tasks=8)
    with pytest.raises(CheckpointError, match="combined_loader says batches=None"):
        trainer.fit(MAML(TinyConv(), inner_steps=1), datamodule=data, ckpt_path=tmp_path / "saved.ckpt")
    assert taken["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"epoch": "third", "position": 21}]
