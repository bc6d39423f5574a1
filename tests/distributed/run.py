"""A run on one or two gloo processes, started by the tests: trains a little, tests, and writes what each rank saw."""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from metalearn import MAML, Batch, Context, Episode, LoRA, StepSizeAdvisor
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.modules.callbacks.tables import TaskTable
from tests.algorithms import ALGORITHMS, Smooth
from tests.networks import Room, TinyConv, noise_episode


class Crowded(torch.nn.Module):
    """A network that the second rank has room for two tasks of, and the first for all."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Room.room = 2 if os.environ.get("LOCAL_RANK") == "1" else 1 << 30
        outputs: torch.Tensor = Room.apply(self.net(x))
        return outputs


MAKERS: dict[str, Any] = {
    **{name: algorithm.make_cheap for name, algorithm in ALGORITHMS.items()},
    "lora": partial(MAML, inner_steps=2, adapter=LoRA(2)),
    "lora_factors": partial(MAML, inner_steps=2, adapter=LoRA(2, trains="factors")),
    "context": partial(MAML, inner_steps=2, adapter=Context(2, "body.1")),
    "crowded": lambda net, **options: MAML(Crowded(net), inner_steps=2, **options | {"execution": "vectorized"}),
    "advised": partial(MAML, inner_steps=2, inner_lr=1e-3),
}
"""What makes a module of a network: every algorithm, adapters, and one that an advisor watches."""


class Recorded(EpisodicDataModule):
    """Noise tasks; remembers which were drawn."""

    drawn: list[tuple[str, int]]

    def draw(self, seed: int, split: str, indices: list[int]) -> Episode:
        self.drawn += [(split, index) for index in indices]
        episodes = [noise_episode(1, seed=100_000 * len(split) + index, dtype=torch.float32) for index in indices]
        return Episode(
            *(Batch(*(torch.cat(part) for part in zip(*roles, strict=True))) for roles in zip(*episodes, strict=True))
        )


def main(folder: Path, devices: int, test_tasks: int, poison: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    L.seed_everything(0, verbose=False)
    data = Recorded(4, 32, 4, test_tasks, 0, 0)
    data.drawn = []
    module = MAML(TinyConv(), inner_steps=2, inner_lr=1e30 if poison else 0.3, execution="sequential")
    table = TaskTable()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=[table],
        num_sanity_val_steps=0, limit_train_batches=0 if test_tasks > 50 else 1.0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trained = {name: float(trainer.callback_metrics[name]) for name in ("train/loss", "train/acc") if test_tasks <= 50}
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    weights = torch.cat([value.detach().flatten() for value in module.parameters()])
    records = module.test_records()
    assert records.confusions is not None
    assert records.bins is not None
    found |= {"confusions": records.confusions.tolist(), "bins": records.bins.mul(1e6).round().tolist()}
    report = {"drawn": data.drawn, "test": found, "weights": weights.tolist(), "trained": trained}
    (folder / f"rank{trainer.global_rank}of{devices}.json").write_text(json.dumps(report))


def train(name: str, devices: int, folder: Path) -> dict[str, Any]:
    """Two steps of a module on 8 tasks each, however many ranks share them."""
    L.seed_everything(0, verbose=False)
    data = Recorded(8 // devices, 16, 4, 7, 0, 0)
    data.drawn = []
    module = MAKERS[name](
        Smooth(),  # of pooled tasks each rank would normalise its own batch
        execution="sequential",
        outer_optimizer=lambda params: torch.optim.SGD(params, lr=0.1),  # no division by gradients near 0
    )
    advisors = [StepSizeAdvisor(every=1, tasks=1, apply=True)] if name == "advised" else []
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        limit_val_batches=0, default_root_dir=folder, callbacks=[*advisors],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    weights = torch.cat([value.detach().flatten() for value in module.parameters()])
    logged = {key: float(trainer.callback_metrics[key]) for key in ("train/loss", "train/acc")}
    factors = [advisor.applied for advisor in advisors]
    return {"weights": weights.tolist(), "logged": logged, "rank": trainer.global_rank, "factors": factors}


def train_all(folder: Path, devices: int) -> None:
    """Every module in turn; what each rank has at the end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = {name: train(name, devices, folder) for name in MAKERS}
    (folder / f"rank{results['maml']['rank']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[4:] == ["algorithms"]:
        train_all(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["poison"])
