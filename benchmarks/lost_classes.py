"""How much of a checkpoint's error lies in classes that are lost altogether.

A class counts as lost in a task where all of its queries are taken for one other class. That is what an inner step too many
does, where a few mistaken queries are those of drawings that are hard to read. Printed are the errors in all, those of lost
classes, the accuracy over the tasks that lost none, and the pairs of classes.

python benchmarks/lost_classes.py anil_omniglot_5w5s --root DIR --inner_steps 3 --picture lost.png
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from machine import processor
from shipped import add_checkpoint, open_checkpoint
from torch import Tensor

from metalearn.metrics import interval

Pair = tuple[str, str]


def find_lost(labels: Tensor, predictions: Tensor) -> list[tuple[int, int]]:
    """The classes of a task of which every query was taken for one other class, each with that class.

    Args:
        labels: of the queries, ``[Q]``.
        predictions: for them, ``[Q]``.
    """
    lost = []
    for label in labels.unique().tolist():
        taken = predictions[labels == label].unique().tolist()
        if len(taken) == 1 and taken[0] != label:
            lost.append((label, taken[0]))
    return lost


def draw_pairs(path: Path, pairs: dict[Pair, tuple[Tensor, Tensor]]) -> None:
    """One column a pair: the support image of the class that was lost above that of the other."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(pairs), figsize=(max(4.5, 1.5 * len(pairs)), 3.4), layout="constrained", squeeze=False
    )
    for column, (names, images) in zip(axes.T, pairs.items(), strict=True):
        for axis, name, image in zip(column, names, images, strict=True):
            axis.imshow(image.squeeze(0).numpy(), cmap="gray_r")
            axis.set_title(name.partition("@")[0].replace("/", "\n"), fontsize=7)
            axis.set_axis_off()
    figure.suptitle("characters lost (above) to the ones below, one drawing of each", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument("--inner_steps", type=int, help="otherwise those of the checkpoint's evaluation")
    parser.add_argument("--pairs", type=int, default=8, help="how many pairs are printed and drawn")
    parser.add_argument("--picture", type=Path, help="a PNG file for the pairs")
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, data = open_checkpoint(options)
    accuracies, whole, errors, lost_errors = [], [], 0, 0
    pairs: Counter[Pair] = Counter()
    images: dict[Pair, tuple[Tensor, Tensor]] = {}
    for index in range(options.tasks):
        support, query = data.episode(data.seed, "test", index)
        predictions = module.adapt(support, steps=options.inner_steps)(query.x).argmax(-1)
        (names,) = data.task_classes("test", [index])
        lost = find_lost(query.y, predictions)
        wrong = predictions != query.y
        errors += int(wrong.sum())
        lost_errors += sum(int((query.y == label).sum()) for label, _ in lost)
        accuracies.append(float((~wrong).float().mean()))
        if not lost:
            whole.append(accuracies[-1])
        for label, other in lost:
            pair = names[label], names[other]
            pairs[pair] += 1
            images.setdefault(pair, (support.x[support.y == label][0], support.x[support.y == other][0]))
    most = dict(pairs.most_common(options.pairs))
    accuracy, rest = interval(torch.tensor(accuracies)), interval(torch.tensor(whole))
    print(
        f"accuracy {accuracy}; {errors:,} errors, {lost_errors:,} of them in {pairs.total():,} classes that were lost"
    )
    print(f"over the {len(whole)} tasks that lost none: {rest}")
    for (lost_name, other_name), count in most.items():
        print(f"{count} times {lost_name} for {other_name}")
    if options.picture and most:
        draw_pairs(options.picture, {pair: images[pair] for pair in most})
    if options.output:
        numbers = {
            "checkpoint": options.checkpoint, "inner_steps": options.inner_steps, "tasks": options.tasks,
            "accuracy": accuracy.mean, "errors": errors,
            "lost_errors": lost_errors, "lost": pairs.total(), "without": rest.mean, "without_tasks": len(whole),
            "pairs": [[*pair, count] for pair, count in most.items()], "machine": processor(),
        }  # fmt: skip
        options.output.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
