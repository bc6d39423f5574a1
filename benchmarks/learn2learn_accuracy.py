"""Meta-train learn2learn's MAML or ANIL as a shipped config says, and test it on the same tasks as ours.

The network starts from the weights that the config's seed gives, and sees the training tasks that our data module draws, in
their order, so what differs is the implementation alone. The test tasks are those of a table written by
``python -m metalearn data tasks``.

python benchmarks/learn2learn_accuracy.py --config maml_miniimagenet_5w1s --root DIR --steps 150 --tasks tasks.csv
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import learn2learn as l2l
import torch
import yaml
from lightning import seed_everything
from machine import describe
from torch import Tensor, nn

from metalearn import Conv4, Episode, datamodules
from metalearn.cli.arguments import config_path
from metalearn.metrics import interval

Loss = nn.functional.cross_entropy


class Learner:
    """learn2learn's loop over one task, as its examples write it."""

    def __init__(self, algorithm: str, network: Conv4, inner_lr: float, first_order: bool) -> None:
        self.anil = algorithm == "ANIL"
        self.body: nn.Module = network.body if self.anil else nn.Identity()
        self.maml = l2l.algorithms.MAML(network.head if self.anil else network, lr=inner_lr, first_order=first_order)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.body.parameters(), *self.maml.parameters()]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tasks", help="the table of test tasks; without it, those that the data module draws")
    parser.add_argument("--test_tasks", type=int, default=600)
    given = parser.parse_args()
    config = yaml.safe_load(config_path(given.config).read_text())
    model, data_args = config["model"]["init_args"], config["data"]["init_args"]
    kind = getattr(datamodules, config["data"]["class_path"])
    more = {"options": datamodules.EpisodeOptions(test_tasks_file=given.tasks)} if given.tasks else {}
    data = kind(**{**data_args, "root": given.root, "test_tasks": given.test_tasks}, **more)
    seed_everything(config["seed_everything"])
    network = Conv4(ways=data_args["ways"], **model["backbone"]["init_args"])
    learner = Learner(config["model"]["class_path"], network, model["inner_lr"], model["first_order"])
    optimizer = torch.optim.Adam(learner.parameters(), **model["outer_optimizer"]["init_args"])
    loader = data.train_dataloader()
    begun = time.perf_counter()
    done = 0
    while done < given.steps:
        for episode in loader:
            tasks = len(episode.support.x)
            optimizer.zero_grad()
            total = 0.0
            for task in range(tasks):
                support, query = single(episode, task)
                loss = Loss(learner.query_logits(support, query, model["inner_steps"]), query.y) / tasks
                loss.backward()
                total += loss.item()
            optimizer.step()
            done += 1
            if done % 10 == 0 or done == given.steps:
                print(f"step {done}: loss {total:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
            if done == given.steps:
                break
    accuracies = []
    for episode in data.test_dataloader():
        for task in range(len(episode.support.x)):
            support, query = single(episode, task)
            logits = learner.query_logits(support, query, model["eval_inner_steps"], first_order=True).detach()
            accuracies.append((logits.argmax(-1) == query.y).float().mean())
    found = interval(torch.stack(accuracies))
    print(describe())
    print(
        f"learn2learn {l2l.__version__}, {given.config}, {given.steps} steps: {100 * found.mean:.2f} % ± {100 * found.ci95:.2f} "
        f"over {found.tasks} tasks, {time.perf_counter() - begun:.0f} s in all"
    )


if __name__ == "__main__":
    main()
