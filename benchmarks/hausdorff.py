"""How hard the tasks of Lake's challenge are here, by a method that nobody trains: the modified Hausdorff distance.

A drawing is the set of its ink pixels at full size, moved so that their mean is 0. The distance of two is the larger of the two
mean distances from a pixel of one to the nearest of the other (Dubuisson and Jain 1994). A query is the character whose drawing
is nearest. On the 20 runs of Lake et al. its error is 38.8 % (recalled).

Also: which part of the variance of a drawing's width, height and ink goes with its number. Where drawings of one number are by
one person it is well above 1 / characters, which is what chance gives.

python benchmarks/hausdorff.py --root DIR --tasks 100
"""

from __future__ import annotations

import argparse

import torch
from shipped import make_data, read_config
from torch import Tensor

from metalearn.datamodules import OmniglotDataModule


def find_ink(image: Tensor) -> Tensor:
    """The places ``[n, 2]`` of ink in an image ``[1, H, W]``, about their mean."""
    places = (image[0] > 0.5).nonzero().float()
    return places - places.mean(0)


def measure_distance(first: Tensor, second: Tensor) -> float:
    """The modified Hausdorff distance of two sets of places."""
    distances = torch.cdist(first, second)
    return float(torch.maximum(distances.amin(1).mean(), distances.amin(0).mean()))


def measure_task(data: OmniglotDataModule, task: int) -> float:
    """The share of a test task's queries that are nearer to another character."""
    support, query = data.episode(data.seed, "test", task)
    drawn = [find_ink(image) for image in support.x]
    wrong = 0
    for image, label in zip(query.x, query.y, strict=True):
        ink = find_ink(image)
        nearest = min(range(len(drawn)), key=lambda n: measure_distance(drawn[n], ink))
        wrong += int(support.y[nearest] != label)
    return wrong / len(query.y)


def explain_by_number(data: OmniglotDataModule) -> tuple[float, float]:
    """Of the variance within characters, the mean part that goes with a drawing's number, and what chance gives."""
    store = data.store
    alphabets: dict[str, list[Tensor]] = {}
    for number in data.splits["test"]:
        first = store.offsets[number]
        images = torch.tensor(store.images[first : first + store.counts[number]])[:, 0] > 127
        sizes = torch.stack([images.any(1).sum(1), images.any(2).sum(1), images.sum((1, 2))], 1).float()
        alphabets.setdefault(store.groups[number], []).append(sizes - sizes.mean(0))
    parts = []
    for listed in alphabets.values():
        sizes = torch.stack(listed)  # [characters, drawings, 3]
        parts.append((sizes.mean(0).square().mean(0) / sizes.square().mean((0, 1))).mean())
    chance = sum(1 / len(listed) for listed in alphabets.values()) / len(alphabets)
    return float(torch.stack(parts).mean()), chance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where the two zip files of Omniglot are")
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(read_config("maml_lake_20w1s"), options.root, image_size=105, test_tasks=options.tasks)
    data.prepare_data()
    data.setup()
    part, chance = explain_by_number(data)
    print(
        f"of the variance within a character, {100 * part:.1f} % goes with the number of the drawing; by chance "
        f"{100 * chance:.1f} %"
    )
    errors = torch.tensor([measure_task(data, task) for task in range(options.tasks)], dtype=torch.float64)
    interval = 1.96 * float(errors.std()) / options.tasks**0.5
    print(
        f"modified Hausdorff distance: error {100 * float(errors.mean()):.2f} % ± {100 * interval:.2f} over {options.tasks} tasks"
    )


if __name__ == "__main__":
    main()
