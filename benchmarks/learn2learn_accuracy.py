"""Meta-train metalearn's MAML or ANIL beside learn2learn's as a shipped config says, and test both on the way.

The two take turns in one process: every batch of training tasks goes to ours, under a stock ``Trainer``, and then to theirs.
Both start from the weights that the config's seed gives, and are tested on the same test tasks. What differs is the
implementation alone. The seconds are those of the training steps, without the drawing of tasks. With ``--output`` a run that was
stopped goes on from the ``.ckpt`` file beside the output, which is a few minutes old at most.

A config whose step sizes are learned has no twin in learn2learn. With ``--documented`` theirs has the settings of its example for
Omniglot instead: its fully connected ``OmniglotFC``, one inner step of 0.5 in training and at test, and Adam from a constant
3e-3, on the same tasks. That example has 32 tasks a step and one query a class: ``--tasks_per_batch`` and ``--queries`` give them
to both. Ours stays as its config says, so that the rows are of two networks; with ``--documented both`` our MAML has that network
and those settings too. ``--network OmniglotCNN`` is learn2learn's other one for Omniglot, with strided convolutions of a quarter
of the work where our config pools.

python benchmarks/learn2learn_accuracy.py --config maml_miniimagenet_5w1s --root DIR --steps 2000 --output file.json
python benchmarks/learn2learn_accuracy.py --config maml_omniglot_5w1s --documented --tasks_per_batch 32 --queries 1 \\
    --root DIR --steps 2000 --output file.json
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import learn2learn as l2l
import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from machine import describe
from shipped import make_data, make_network, read_config
from torch import Tensor, nn

import metalearn
from metalearn import Conv4, Episode
from metalearn.datamodules import EpisodeOptions
from metalearn.metrics import Interval, interval
from metalearn.reports.tables import write_atomically

Loss = nn.functional.cross_entropy
DOCUMENTED_INNER_LR, DOCUMENTED_LR = 0.5, 3e-3
"""Of learn2learn's example for Omniglot, which takes one inner step."""


class Learner:
    """learn2learn's loop over one task, as its examples write it."""

    def __init__(self, algorithm: str, network: nn.Module, inner_lr: float, first_order: bool) -> None:
        self.body: nn.Module = nn.Identity()
        adapted = network
        if algorithm == "ANIL":
            assert isinstance(network, Conv4)
            self.body, adapted = network.body, network.head
        self.maml = l2l.algorithms.MAML(adapted, lr=inner_lr, first_order=first_order)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.body.parameters(), *self.maml.parameters()]

    def double(self) -> None:
        """Go on in float64, with the parameters that an optimiser has."""
        self.body.double()
        self.maml.double()

    def query_logits(self, support: Any, query: Any, steps: int, first_order: bool | None = None) -> Tensor:
        clone = self.maml.clone(first_order=first_order)
        z = self.body(support.x)
        for _ in range(steps):
            clone.adapt(Loss(clone(z), support.y))
        logits: Tensor = clone(self.body(query.x))
        return logits


def single(episode: Episode, task: int) -> tuple[Any, Any]:
    """One task of a batch, without the task axis."""
    support, query = (type(role)(role.x[task], role.y[task]) for role in episode)
    return support, query


def take_step(learner: Learner, optimizer: torch.optim.Optimizer, episode: Episode, inner_steps: int) -> None:
    """One outer step of theirs, on a batch of tasks."""
    tasks = len(episode.support.x)
    optimizer.zero_grad()
    for task in range(tasks):
        support, query = single(episode, task)
        (Loss(learner.query_logits(support, query, inner_steps), query.y) / tasks).backward()
    optimizer.step()


def test(learner: Learner, loader: Iterable[Episode], inner_steps: int) -> Interval:
    """The accuracy of theirs over the tasks of the loader."""
    accuracies = []
    for episode in loader:
        for task in range(len(episode.support.x)):
            support, query = single(episode, task)
            logits = learner.query_logits(support, query, inner_steps, first_order=True).detach()
            accuracies.append((logits.argmax(-1) == query.y).float().mean())
    return interval(torch.stack(accuracies))


def test_ours(module: Any, loader: Iterable[Episode]) -> Interval:
    """The accuracy of ours over the tasks of the loader."""
    accuracies = []
    for episode in loader:
        for adapted, x, y in zip(module.adapt_many(episode.support), episode.query.x, episode.query.y, strict=True):
            accuracies.append((adapted(x).argmax(-1) == y).float().mean())
    return interval(torch.stack(accuracies))


class Beside(L.Callback):
    """Trains theirs on the batch that ours has just seen, and tests it when ours is tested."""

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        steps: tuple[int, int],
        loader: Iterable[Episode],
        path: Path | None,
        asked: dict[str, Any],
    ) -> None:
        self.asked = asked
        self.learner, self.optimizer, self.loader, self.path = learner, optimizer, loader, path
        self.inner_steps, self.eval_inner_steps = steps
        self.ours = self.theirs = self.begun = 0.0
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "asked": self.asked, "body": self.learner.body.state_dict(), "maml": self.learner.maml.state_dict(),
            "optimizer": self.optimizer.state_dict(), "rows": self.rows, "seconds": [self.ours, self.theirs],
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["asked"] != self.asked:
            raise SystemExit(
                f"{self.path} is of a run with {state_dict['asked']}, but this one has {self.asked}; use another --output"
            )
        self.learner.body.load_state_dict(state_dict["body"])
        self.learner.maml.load_state_dict(state_dict["maml"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.rows = list(state_dict["rows"])
        self.ours, self.theirs = state_dict["seconds"]
        print("\n".join(map(write_row, self.rows)), flush=True)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between = time.perf_counter()
        take_step(self.learner, self.optimizer, batch, self.inner_steps)
        self.ours += between - self.begun
        self.theirs += time.perf_counter() - between

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """While weights that are averaged stand in their places."""
        convert = trainer.precision_plugin.convert_input
        ours = test_ours(pl_module, map(convert, self.loader))
        with torch.enable_grad():
            theirs = test(self.learner, map(convert, self.loader), self.eval_inner_steps)
        row = {
            "steps": trainer.global_step,
            "ours": ours.mean, "ours_ci95": ours.ci95, "ours_seconds": self.ours,
            "theirs": theirs.mean, "theirs_ci95": theirs.ci95, "theirs_seconds": self.theirs, "tasks": theirs.tasks,
        }  # fmt: skip
        self.rows.append(row)
        print(write_row(row), flush=True)
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.rows, indent=1).encode())


class SaveBetween(ModelCheckpoint):
    """Saves between two tests as well. After a test its row is saved by another, so that no test is skipped by a resume."""

    def __init__(self, *, every: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.every = every

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.every:
            super().on_train_batch_end(trainer, *args)


def write_row(row: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"| {row['steps']:,} | {100 * row['ours']:.2f} % ± {100 * row['ours_ci95']:.2f} | "
        f"{100 * row['theirs']:.2f} % ± {100 * row['theirs_ci95']:.2f} | {row['ours_seconds']:,.0f} s | "
        f"{row['theirs_seconds']:,.0f} s | {row['theirs_seconds'] / row['ours_seconds']:.2f} |"
    )


def make_documented_network(name: str, ways: int) -> nn.Module:
    """One of learn2learn's networks for Omniglot."""
    if name == "OmniglotFC":
        network: nn.Module = l2l.vision.models.OmniglotFC(28**2, ways)
    else:
        network = l2l.vision.models.OmniglotCNN(ways)
    return network


def make_ours(config: dict[str, Any], network: str | None) -> L.LightningModule:
    """Our module as the config says, or by the settings of learn2learn's example with the ``network`` of that name."""
    options = dict(config["model"]["init_args"])
    if network is not None:
        return metalearn.MAML(
            make_documented_network(network, config["data"]["init_args"]["ways"]),
            inner_steps=1, inner_lr=DOCUMENTED_INNER_LR, outer_optimizer=partial(torch.optim.Adam, lr=DOCUMENTED_LR),
            compile=options["compile"],
        )  # fmt: skip
    del options["backbone"]
    adam = partial(torch.optim.Adam, **options.pop("outer_optimizer")["init_args"])
    module: L.LightningModule = getattr(metalearn, config["model"]["class_path"])(
        make_network(config), outer_optimizer=adam, **options
    )
    return module


def make_theirs(config: dict[str, Any], network: str | None) -> tuple[Learner, torch.optim.Optimizer]:
    """learn2learn's learner and outer optimiser, as the config says or by its example with the ``network`` of that name."""
    model = config["model"]["init_args"]
    if network is not None:
        documented = make_documented_network(network, config["data"]["init_args"]["ways"])
        learner = Learner("MAML", documented, DOCUMENTED_INNER_LR, first_order=False)
        return learner, torch.optim.Adam(learner.parameters(), lr=DOCUMENTED_LR)
    learner = Learner(config["model"]["class_path"], make_network(config), model["inner_lr"], model["first_order"])
    return learner, torch.optim.Adam(learner.parameters(), **model["outer_optimizer"]["init_args"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, default=250, help="steps between two tests")
    parser.add_argument("--minutes", type=float, default=5.0, help="between two saves of a run with --output")
    parser.add_argument("--test_tasks", type=int, default=600)
    parser.add_argument("--tasks", help="a table of test tasks, instead of those that the data module draws")
    parser.add_argument("--tasks_per_batch", type=int, help="otherwise the config's")
    parser.add_argument("--queries", type=int, help="a class, otherwise the config's")
    parser.add_argument(
        "--documented", nargs="?", const="theirs", choices=["theirs", "both"],
        help="by the settings of learn2learn's Omniglot example: theirs, or both",
    )  # fmt: skip
    parser.add_argument(
        "--network", choices=["OmniglotFC", "OmniglotCNN"], default="OmniglotFC",
        help="learn2learn's network of --documented; the example has OmniglotFC",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    parser.add_argument(
        "--precision", choices=["32-true", "64-true"], default="32-true",
        help="in which both train; in float64, what rounding does to a long training is left out",
    )  # fmt: skip
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    config = read_config(options.config)
    model = config["model"]["init_args"]
    if options.documented is None and not isinstance(model["inner_lr"], float):
        raise SystemExit(
            f"--config is {options.config}, but learn2learn learns no step sizes; "
            "use maml_miniimagenet_5w1s, or add --documented"
        )
    asked_data = {"tasks_per_batch": options.tasks_per_batch, "queries": options.queries}
    more: dict[str, Any] = {name: value for name, value in asked_data.items() if value is not None}
    if options.tasks:
        more["options"] = EpisodeOptions(test_tasks_file=options.tasks)
    data = make_data(config, options.root, test_tasks=options.test_tasks, **more)
    L.seed_everything(config["seed_everything"], verbose=False)
    ours = make_ours(config, options.network if options.documented == "both" else None)
    L.seed_everything(config["seed_everything"], verbose=False)
    learner, optimizer = make_theirs(config, options.network if options.documented else None)
    if options.precision == "64-true":
        learner.double()
    steps = (1, 1) if options.documented else (model["inner_steps"], model["eval_inner_steps"])
    averaged = "callbacks" in config["trainer"] and options.documented != "both"
    more_callbacks: list[L.Callback] = [EMAWeightAveraging(decay=0.98)] if averaged else []
    saved = None if options.output is None else options.output.with_suffix(".ckpt")
    if saved is not None:
        where: dict[str, Any] = {"dirpath": saved.parent, "filename": saved.stem, "enable_version_counter": False}
        more_callbacks += [
            ModelCheckpoint(**where, save_on_train_epoch_end=False),
            SaveBetween(**where, every=options.every, train_time_interval=timedelta(minutes=options.minutes)),
        ]
    data.setup()
    asked = {key: value for key, value in vars(options).items() if key not in ("root", "output", "every", "minutes")}
    beside = Beside(learner, optimizer, steps, data.test_dataloader(), options.output, asked)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=saved is not None, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, max_steps=options.steps, max_epochs=-1,
        val_check_interval=options.every, check_val_every_n_epoch=None, limit_val_batches=1, inference_mode=False,
        callbacks=[beside, *more_callbacks], precision=options.precision,
    )  # fmt: skip
    print(f"{describe()}, learn2learn {l2l.__version__}, {options.config}, {options.test_tasks} test tasks\n")
    print(
        "| outer steps | ours | learn2learn | ours, training | learn2learn, training | ratio |\n|---:|---|---|---:|---:|---:|"
    )
    start = saved if saved is not None and saved.exists() else None
    trainer.fit(ours, datamodule=data, ckpt_path=start, weights_only=True)


if __name__ == "__main__":
    main()
