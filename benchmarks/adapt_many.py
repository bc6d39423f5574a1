"""How much faster ``adapt_many`` is than ``adapt`` for each task: prints both times and their ratio.

python benchmarks/adapt_many.py --tasks 32
"""

from __future__ import annotations

import argparse
import time

import torch

from metalearn import ANIL, MAML, Batch, Conv4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    support = Batch(torch.rand(options.tasks, 5, 1, 28, 28), torch.arange(5).expand(options.tasks, 5))
    for kind in (MAML, ANIL):
        module = kind(Conv4(ways=5), inner_steps=5, inner_lr=0.1).eval()
        tasks = [Batch(x, y) for x, y in zip(*support, strict=True)]
        seconds = {"adapt": [], "adapt_many": []}
        for _ in range(options.repeats + 1):  # the first decides how tasks are run
            start = time.perf_counter()
            for task in tasks:
                module.adapt(task)
            middle = time.perf_counter()
            module.adapt_many(support)
            seconds["adapt"].append(middle - start)
            seconds["adapt_many"].append(time.perf_counter() - middle)
        single, many = (min(values[1:]) for values in seconds.values())
        print(
            f"{kind.__name__}: {1e3 * single:.1f} ms one by one, {1e3 * many:.1f} ms at once, {single / many:.2f} times"
        )


if __name__ == "__main__":
    main()
