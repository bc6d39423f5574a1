"""A bilevel run on one or two gloo processes, started by the tests: writes where each rank ended."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metalearn import BilevelFewShot, BilevelModule
from metalearn.bilevel import AID, CG, MRBO, Algorithm, BilevelProblem, BiO, GradientDescent, Sampled
from metalearn.bilevel import StocBiONeumann as Series
from tests.bilevel.made import DOUBLE, Logistic, noise
from tests.distributed.run import Recorded
from tests.networks import TinyConv

TASKS = 4


def sampled() -> BilevelProblem:
    """Logistic regression on batches of its examples."""
    base = Logistic()
    return dataclasses.replace(base.problem, stream=Sampled(base.val, base.train, outer_size=5, inner_size=4))


def tasks(rank: int, ranks: int) -> tuple[BilevelProblem, Any]:
    """A rank's share of four tasks, and its batch."""
    base = Logistic()
    own = [Logistic(seed=100 * number) for number in range(TASKS)][rank::ranks]
    sets = zip(*((each.val, each.train) for each in own), strict=True)
    stack = [tuple(torch.stack(part) for part in zip(*each, strict=True)) for each in sets]
    count = len(own)

    def init(x: Tensor) -> Tensor:
        return torch.zeros(count, base.features, dtype=DOUBLE)

    return BilevelProblem(base.outer_loss, base.inner_loss, init, batched=count), tuple(stack)


ALGORITHMS: dict[str, Algorithm] = {
    "tasks": BiO(estimator=AID(inner=GradientDescent(step_size=0.3, steps=4), solver=CG(iterations=4)), step_size=0.3),
    "mrbo": MRBO(estimator=Series(eta=0.3, Q=2), step_size=0.2, inner_step_size=0.3),
}


def main(folder: Path, devices: int, name: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=5, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        use_distributed_sampler=False,
    )  # fmt: skip
    rank = trainer.global_rank
    path = folder / f"rank{rank}of{devices}.json"
    if name == "few_shot":
        L.seed_everything(0, verbose=False)
        data = Recorded(4 // devices, 20, 4, 4, 0, 0)
        data.drawn = []
        net = BilevelFewShot(TinyConv(), inner_steps=3, l2=0.1, execution="sequential")
        trainer.limit_val_batches = 0
        trainer.fit(net, datamodule=data)
        weights = torch.cat([value.detach().flatten() for value in net.parameters()])
        path.write_text(json.dumps({"x": weights.tolist(), "counts": net.counts.as_dict()}))
        return
    if name == "mrbo":
        module, loader = BilevelModule(sampled(), ALGORITHMS[name], noise(4)), None
    else:
        problem, batch = tasks(rank, devices)
        module = BilevelModule(problem, ALGORITHMS[name], noise(4))
        loader = DataLoader([batch] * 5, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / f"of{devices}.ckpt")
    report = {
        "x": module.x.tolist(),
        "y": module.y.tolist(),
        "counts": module.counts.as_dict(),
        "seed": module.state["seed"],
    }
    path.write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
