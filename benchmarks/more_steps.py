"""More inner steps on tasks of more classes than in training, with step sizes as they were learned and with smaller ones.

Each cell is the accuracy on queries, and the loss that is left on the support set. Tasks are those of validation. The last row
of each number of ways leaves the body where it is.

python benchmarks/more_steps.py checkpoints/maml_omniglot_5w1s.ckpt --root DIR
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from shipped import make_data, read_config
from torch.nn.functional import cross_entropy

from metalearn.image_classifier import load_module
from metalearn.inner.step_sizes import InnerStepSizes
from metalearn.metrics import interval


@torch.no_grad()
def hold_body(module: Any) -> None:
    """Let the head alone take steps, by step sizes of 0 elsewhere."""
    (sizes,) = (part for part in module.modules() if isinstance(part, InnerStepSizes))
    assert sizes.learned is not None
    sizes.learned.mul_(torch.tensor([float(name.startswith("head.")) for name in sizes._tensors]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--root", help="where Omniglot is")
    parser.add_argument("--ways", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--tasks", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(options.checkpoint.rpartition("/")[2].removesuffix(".ckpt"))
    print("| ways | step sizes | " + " | ".join(f"{steps} step{'s' * (steps > 1)}" for steps in options.steps) + " |")
    print("|---:|---|" + "---|" * len(options.steps))
    for ways in options.ways:
        data = make_data(config, options.root, ways=ways, queries=5, val_tasks=options.tasks)
        data.setup()
        for factor in [*options.factors, 0.0]:
            module, _ = load_module(options.checkpoint)
            if factor:
                module.rescale_steps(factor)
            else:
                hold_body(module)
            cells = []
            for steps in options.steps:
                accuracies, losses = [], []
                for index in range(options.tasks):
                    support, query = data.episode(data.seed, "val", index)
                    adapted = module.adapt(support, steps=steps, ways=ways)
                    accuracies.append((adapted(query.x).argmax(-1) == query.y).float().mean())
                    losses.append(cross_entropy(adapted(support.x), support.y))
                found = interval(torch.stack(accuracies))
                cells.append(f"{100 * found.mean:.1f} ± {100 * found.ci95:.1f} ({torch.stack(losses).mean():.2f})")
            what = (
                f"{factor:g} of the learned" if factor not in (0, 1) else "learned" if factor else "learned, head alone"
            )
            print(f"| {ways} | {what} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
