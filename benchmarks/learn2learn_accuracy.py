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
from lightning import seed_everything
from machine import describe
from shipped import make_data, make_network, read_config
from torch import Tensor, nn

from metalearn import Conv4, Episode, datamodules
from metalearn.metrics import Interval, interval

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


def train(learner: Learner, optimizer: torch.optim.Optimizer, loader: Any, inner_steps: int, steps: int) -> None:
    """Outer steps on the tasks of the loader, in their order."""
    begun = time.perf_counter()
    done = 0
    while done < steps:
        for episode in loader:
            tasks = len(episode.support.x)
            optimizer.zero_grad()
            total = 0.0
            for task in range(tasks):
                support, query = single(episode, task)
                loss = Loss(learner.query_logits(support, query, inner_steps), query.y) / tasks
                loss.backward()
                total += loss.item()
            optimizer.step()
            done += 1
            if done % 10 == 0 or done == steps:
                print(f"step {done}: loss {total:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
            if done == steps:
                break


def test(learner: Learner, loader: Any, inner_steps: int) -> Interval:
    """The accuracy over the tasks of the loader."""
    accuracies = []
    for episode in loader:
        for task in range(len(episode.support.x)):
            support, query = single(episode, task)
            logits = learner.query_logits(support, query, inner_steps, first_order=True).detach()
            accuracies.append((logits.argmax(-1) == query.y).float().mean())
    return interval(torch.stack(accuracies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tasks", help="the table of test tasks; without it, those that the data module draws")
    parser.add_argument("--test_tasks", type=int, default=600)
    options = parser.parse_args()
    config = read_config(options.config)
    model = config["model"]["init_args"]
    if not isinstance(model["inner_lr"], float):
        raise SystemExit(
            f"--config is {options.config}, but learn2learn learns no step sizes; use maml_miniimagenet_5w1s"
        )
    more = {"options": datamodules.EpisodeOptions(test_tasks_file=options.tasks)} if options.tasks else {}
    data = make_data(config, options.root, test_tasks=options.test_tasks, **more)
    seed_everything(config["seed_everything"])
    learner = Learner(config["model"]["class_path"], make_network(config), model["inner_lr"], model["first_order"])
    optimizer = torch.optim.Adam(learner.parameters(), **model["outer_optimizer"]["init_args"])
    begun = time.perf_counter()
    train(learner, optimizer, data.train_dataloader(), model["inner_steps"], options.steps)
    accuracy = test(learner, data.test_dataloader(), model["eval_inner_steps"])
    print(describe())
    print(
        f"learn2learn {l2l.__version__}, {options.config}, {options.steps} steps: {100 * accuracy.mean:.2f} % ± "
        f"{100 * accuracy.ci95:.2f} over {accuracy.tasks} tasks, {time.perf_counter() - begun:.0f} s in all"
    )


if __name__ == "__main__":
    main()
