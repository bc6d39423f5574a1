"""The accuracy of a checkpoint on tasks with fewer or more classes than it was trained for.

python benchmarks/ways.py checkpoints/maml_glyphs_5w1s.ckpt
"""

from __future__ import annotations

import argparse

import torch

from metalearn.datamodules import GlyphsDataModule
from metalearn.image_classifier import load_module
from metalearn.metrics import interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint that was trained on Glyphs")
    parser.add_argument("--ways", type=int, nargs="+", default=[3, 5, 10, 20])
    parser.add_argument("--tasks", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, _ = load_module(options.checkpoint)
    for ways in options.ways:
        data = GlyphsDataModule(ways=ways, shots=1, queries=5, test_tasks=options.tasks)
        accuracies = []
        for index in range(options.tasks):
            support, query = data.episode(data.seed, "test", index)
            accuracies.append((module.adapt(support, ways=ways)(query.x).argmax(-1) == query.y).float().mean())
        print(f"{ways:3d} ways: {interval(torch.stack(accuracies))}")


if __name__ == "__main__":
    main()
