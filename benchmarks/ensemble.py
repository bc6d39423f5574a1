"""An ensemble of checkpoints of one run, as MAML++ reports it (Antoniou et al. 2019): the mean of their probabilities.

Every checkpoint adapts to a test task by itself. Printed are the accuracy of each, and that of the class with the largest mean
probability. The checkpoints are chosen before, on validation tasks: a run whose ``ModelCheckpoint`` has ``save_top_k: 5`` keeps
its five best.

python benchmarks/ensemble.py runs/NAME/version_0/checkpoints/top-*.ckpt --config NAME --root DIR
"""

from __future__ import annotations

import argparse
import json

import torch
from machine import processor
from shipped import make_data, read_config

from metalearn.image_classifier import load_module
from metalearn.metrics import interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--config", required=True, help="whose data these are")
    parser.add_argument("--root", help="where the data are")
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--output", help="a JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(read_config(options.config), options.root, test_tasks=options.tasks)
    data.setup()
    modules = [load_module(name)[0] for name in options.checkpoints]
    single, together = [], []
    for index in range(options.tasks):
        support, query = data.episode(data.seed, "test", index)
        probabilities = torch.stack([module.adapt(support)(query.x).softmax(-1) for module in modules])
        single.append((probabilities.argmax(-1) == query.y).float().mean(-1))
        together.append((probabilities.mean(0).argmax(-1) == query.y).float().mean())
        if (index + 1) % 50 == 0:
            print(f"{index + 1} of {options.tasks} tasks", flush=True)
    alone = [interval(of_one) for of_one in torch.stack(single).unbind(1)]
    ensemble = interval(torch.stack(together))
    for name, found in zip(options.checkpoints, alone, strict=True):
        print(f"{name}: accuracy {found}")
    print(f"ensemble of {len(modules)}: accuracy {ensemble}")
    if options.output:
        numbers = {
            "config": options.config, "checkpoints": options.checkpoints, "tasks": options.tasks,
            "alone": [[found.mean, found.ci95] for found in alone], "ensemble": [ensemble.mean, ensemble.ci95],
            "machine": processor(),
        }  # fmt: skip
        with open(options.output, "w") as file:
            json.dump(numbers, file, indent=1)


if __name__ == "__main__":
    main()
