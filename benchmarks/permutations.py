"""How much the accuracy of a checkpoint on a task depends on which class has which label.

Every task of the test split is adapted to under many permutations of its labels. The head of MAML has rows of its own for each
label, so that another order of the classes is another start (UNICORN-MAML, arXiv 2107.00143). Printed are the mean accuracy over
all of them, and of each task the deviation over permutations, the best and the worst, averaged over tasks. With ``--output FILE``
a run that was stopped goes on by the same command, from the tasks in FILE.part.

python benchmarks/permutations.py checkpoints/maml_omniglot_5w1s.ckpt --root DIR
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from machine import processor
from shipped import add_checkpoint, open_checkpoint
from torch import Tensor

from metalearn import Batch
from metalearn.carried.shipped import checkpoint_path
from metalearn.metrics import interval
from metalearn.reports.tables import write_atomically

ENUMERATED = 7
"""Up to as many ways all orders are listed, to draw from without one coming twice: 5,040 of them."""


def draw_orders(ways: int, count: int) -> Tensor:
    """Orders of the labels by a generator of its own, ``[count, ways]``; with 0 all there are."""
    if count < 0:
        raise SystemExit(f"--permutations is {count}, but must be a number of orders, or 0 for all")
    generator = torch.Generator().manual_seed(0)
    if ways <= ENUMERATED:
        orders = torch.tensor(list(itertools.permutations(range(ways))))
        return orders[torch.randperm(len(orders), generator=generator)[:count]] if count else orders
    if not count:
        raise SystemExit(
            f"--permutations is 0, for all, but {ways} labels have {math.factorial(ways):,} orders; give a number of them"
        )
    return torch.stack([torch.randperm(ways, generator=generator) for _ in range(count)])


class Part:
    """The accuracies of the tasks that are done, kept beside the output of a run that may be stopped.

    Args:
        output: the file that the run writes at its end; None keeps nothing.
        settings: what the accuracies depend on. A part with other ones is refused, and not overwritten.
    """

    def __init__(self, output: str | None, settings: dict[str, Any]) -> None:
        self.path = Path(f"{output}.part") if output else None
        self.settings = settings
        self.rows: list[list[float]] = []
        if self.path and self.path.exists():
            kept = json.loads(self.path.read_text())
            self.rows = kept.pop("rows")
            if kept != settings:
                raise SystemExit(
                    f"{self.path} was begun with {kept}, not {settings}; delete it, or name another --output"
                )
            print(f"goes on after task {len(self.rows)}, from {self.path}", flush=True)

    def save(self) -> None:
        if self.path:
            write_atomically(self.path, json.dumps({**self.settings, "rows": self.rows}).encode())

    def remove(self) -> None:
        if self.path:
            self.path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument(
        "--permutations", type=int, default=24, help="of the labels, in order of a fixed generator; 0 for all"
    )
    parser.add_argument("--inner_steps", type=int, help="otherwise those of the checkpoint's evaluation")
    parser.add_argument("--output", help="a JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, data = open_checkpoint(options)
    digest = hashlib.sha256(Path(checkpoint_path(options.checkpoint)).read_bytes()).hexdigest()
    orders = draw_orders(data.ways, options.permutations)
    settings = {
        "sha256": digest, "permutations": len(orders), "inner_steps": options.inner_steps, "config": options.config,
        "root": options.root,
    }  # fmt: skip
    part = Part(options.output, settings)
    for index in range(len(part.rows), options.tasks):
        support, query = data.episode(data.seed, "test", index)
        turned = Batch(support.x.expand(len(orders), *support.x.shape), orders[:, support.y])
        logits = torch.stack([adapted(query.x) for adapted in module.adapt_many(turned, steps=options.inner_steps)])
        part.rows.append((logits.argmax(-1) == orders[:, query.y]).float().mean(-1).tolist())
        part.save()
        if (index + 1) % 50 == 0:
            print(f"{index + 1} of {options.tasks} tasks", flush=True)
    accuracies = torch.tensor(part.rows[: options.tasks])
    numbers = {
        "checkpoint": options.checkpoint, "sha256": digest, "tasks": options.tasks, "permutations": len(orders),
        "inner_steps": options.inner_steps, "accuracy": float(accuracies.mean()), "deviation": float(accuracies.std(1).mean()),
        "best": float(accuracies.max(1).values.mean()), "worst": float(accuracies.min(1).values.mean()),
        "machine": processor(),
    }  # fmt: skip
    print(f"accuracy {interval(accuracies.mean(1))}")
    print(
        f"of a task over {len(orders)} permutations: deviation {100 * numbers['deviation']:.2f} points, best "
        f"{100 * numbers['best']:.2f} %, worst {100 * numbers['worst']:.2f} %"
    )
    if options.output:
        write_atomically(Path(options.output), json.dumps(numbers, indent=1).encode())
        part.remove()


if __name__ == "__main__":
    main()
