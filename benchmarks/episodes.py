"""Tasks of images drawn per second, 5 ways x 16 images: ours beside learn2learn's Taskset and torchvision's ImageFolder.

All rows are measured in turn in one process, with one thread. learn2learn draws from images in memory as float tensors, by the
FusedNWaysKShots of its own Omniglot benchmark, to which the ratio is, and by the NWays with KShots of its guide. ImageFolder
reads and decodes the files of each task, as a project without a store does.

python benchmarks/episodes.py --omniglot DIR --miniimagenet DIR
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from measure import take_turns
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from metalearn.cli.allocator import keep_buffers
from metalearn.datamodules import ImageEpisodes, MiniImageNetDataModule, OmniglotDataModule

WAYS, IMAGES = 5, 16
FUSED = "learn2learn: FusedNWaysKShots"
Draw = Callable[[int], None]


def training_rows(data: ImageEpisodes) -> tuple[np.ndarray, torch.Tensor]:
    """The numbers of the training images, and their classes."""
    classes = data.splits["train"]
    counts = data.pool.counts[classes]
    rows = [data.pool.offsets[number] + np.arange(count) for number, count in zip(classes, counts, strict=True)]
    return np.concatenate(rows), torch.arange(len(classes)).repeat_interleave(torch.from_numpy(counts))


def learn2learn_tasksets(data: ImageEpisodes) -> dict[str, Draw]:
    """Its draws of one task, over the same images in memory as float tensors; none where it is not installed."""
    try:
        import learn2learn as l2l
    except ImportError:
        return {}
    rows, labels = training_rows(data)
    images = torch.from_numpy(data.take_pixels(rows)).float() / 255
    pairs = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    known = l2l.data.transforms
    samplers = {
        FUSED: [known.FusedNWaysKShots(pairs, n=WAYS, k=IMAGES)],
        "learn2learn: NWays, KShots": [known.NWays(pairs, WAYS), known.KShots(pairs, IMAGES)],
    }
    rest = [known.LoadData(pairs), known.RemapLabels(pairs), known.ConsecutiveLabels(pairs)]
    kind = getattr(l2l.data, "TaskDataset", None) or l2l.data.Taskset

    def drawing(sampler: list[Any]) -> Draw:
        tasks = kind(pairs, [*sampler, *rest], num_tasks=-1)

        def draw(count: int) -> None:
            for _ in range(count):
                tasks.sample()

        return draw

    return {name: drawing(sampler) for name, sampler in samplers.items()}


class TaskSampler(Sampler[list[int]]):
    """The numbers of the files of one task after another."""

    def __init__(self, targets: list[int]) -> None:
        labels = np.asarray(targets)
        self.of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.rng = np.random.default_rng(0)

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            classes = self.rng.choice(len(self.of_class), WAYS, replace=False)
            yield [
                int(row) for label in classes for row in self.rng.choice(self.of_class[label], IMAGES, replace=False)
            ]


def image_folder(data: ImageEpisodes, root: Path, workers: int) -> Draw:
    """Files decoded for each task, by ImageFolder in a DataLoader."""
    size, channels = data.packed_spec.size, data.packed_spec.channels
    if not root.is_dir():
        rows, labels = training_rows(data)
        for row, label in zip(rows, labels.tolist(), strict=True):
            folder = root / f"{label:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = data.take_pixels(np.asarray([row]))[0].transpose(1, 2, 0)
            image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            image.save(folder / (f"{row}.png" if channels == 1 else f"{row}.jpg"))
    grey = [v2.Grayscale()] if channels == 1 else []
    steps = [v2.ToImage(), *grey, v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True)]
    files = ImageFolder(str(root), transform=v2.Compose(steps))
    batches = iter(DataLoader(files, batch_sampler=TaskSampler(files.targets), num_workers=workers))

    def draw(count: int) -> None:
        for _ in range(count):
            next(batches)

    return draw


def ours(kind: type[ImageEpisodes], root: str, workers: int) -> tuple[ImageEpisodes, Draw]:
    """What the data module's loader yields."""
    data = kind(
        root, ways=WAYS, shots=1, queries=IMAGES - 1, tasks_per_batch=16, train_tasks=1 << 30, num_workers=workers
    )  # type: ignore[call-arg]
    data.setup()
    batches = iter(data.train_dataloader())

    def load(count: int) -> None:
        for _ in range(count // 16):
            next(batches)

    return data, load


def gathering(data: ImageEpisodes) -> Draw:
    """The draw and the gather alone, as bytes."""
    position = itertools.count()

    def gather(count: int) -> None:
        for _ in range(count // 16):
            first = next(position) * 16
            data.gather(0, "train", np.arange(first, first + 16))

    return gather


def compare(kind: type[ImageEpisodes], root: str, folder: Path, rounds: int, tasks: int) -> None:
    """Print the table of one data set."""
    data, load = ours(kind, root, 0)
    # a row that decodes files draws fewer tasks a round, since it takes so long
    rows: dict[str, tuple[Draw, int]] = {
        "ours: draw and gather, uint8": (gathering(data), tasks),
        "ours: the DataLoader, float32": (load, tasks),
        "ours: the DataLoader, 2 workers": (ours(kind, root, 2)[1], tasks),
        **{name: (draw, max(tasks // 4, 16)) for name, draw in learn2learn_tasksets(data).items()},
        "ImageFolder and a sampler": (image_folder(data, folder, 0), 16),
        "ImageFolder and a sampler, 2 workers": (image_folder(data, folder, 2), 16),
    }
    seconds = take_turns({name: partial(run, count) for name, (run, count) in rows.items()}, rounds)
    rates = {name: [rows[name][1] / spent for spent in rounds] for name, rounds in seconds.items()}
    shape = " x ".join(map(str, data.store.images.shape[1:]))
    print(
        f"{f'{kind.__name__}: {WAYS} ways x {IMAGES} images of {shape}, tasks/s':60}{'median':>9}{'min':>9}{'max':>9}{'ratio':>8}"
    )
    base = statistics.median(rates[FUSED]) if FUSED in rates else None
    for name, values in rates.items():
        middle = statistics.median(values)
        ratio = f"{middle / base:8.2f}" if base else "       -"
        print(f"{name:60}{middle:9.0f}{min(values):9.0f}{max(values):9.0f}{ratio}", flush=True)
    if base is None:
        print("learn2learn is not installed, so there is no ratio: .ci/build_learn2learn builds it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--omniglot", help="the folder of Omniglot's archives")
    parser.add_argument("--miniimagenet", help="miniImageNet, or data in its format")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=960, help="tasks a round and row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_buffers()  # as the command line does; all rows gain by it
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        if options.omniglot:
            compare(OmniglotDataModule, options.omniglot, Path(scratch) / "omniglot", options.rounds, options.tasks)
        if options.miniimagenet:
            compare(
                MiniImageNetDataModule, options.miniimagenet, Path(scratch) / "mini", options.rounds, options.tasks // 4
            )


if __name__ == "__main__":
    main()
