"""What ``metalearn data`` says of a data set: its images, its splits, and the tasks that they have room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from metalearn.datamodules import ClassEpisodes, EpisodicDataModule, ImageEpisodes
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.errors import ConfigError
from metalearn.reports.outcome import Fact

__all__ = ["list_facts"]


def list_facts(data: EpisodicDataModule) -> list[Fact]:
    """The lines of a data set that is set up."""
    facts: list[Fact] = []
    if isinstance(data, ImageEpisodes):
        facts += _list_store(data)
    if isinstance(data, ClassEpisodes):
        facts += [_describe_split(data, split) for split in SPLITS]
        facts += _list_possible_tasks(data)
    else:
        facts.append(_describe_task(data))
    if isinstance(data, ImageEpisodes) and len(data.splits["train"]):
        mean, std = ([float(value) for value in values] for values in data.store.statistics(data.splits["train"]))
        text = f"mean {_join(mean)}, deviation {_join(std)} (of 0..1)"
        facts.append(Fact("train pixels", text, {"train_pixels": {"mean": mean, "deviation": std}}))
    return facts


def _list_store(data: ImageEpisodes) -> list[Fact]:
    store = data.store
    total, *shape = map(int, store.images.shape)
    text = f"{total:,} of {' x '.join(map(str, shape))}, {store.images.nbytes / 1e6:,.1f} MB"
    return [
        Fact("images", text, {"images": total, "image_shape": shape, "bytes": int(store.images.nbytes)}),
        Fact("store", str(store.path), {"store": str(store.path)}),
    ]


def _describe_split(data: ClassEpisodes, split: str) -> Fact:
    classes = data.splits[split]
    if not len(classes):
        return Fact(split, "no classes", {"splits": {split: {"classes": 0, "images": 0}}})
    counts = data.pool.counts[classes]
    number = int(data.num_classes(split))
    least, most, median = int(counts.min()), int(counts.max()), float(np.median(counts))
    spread = f"{least}" if least == most else f"{least} to {most}, median {median:g}"
    text = f"{number:,} {'class' if number == 1 else 'classes'}, {int(counts.sum()):,} images ({spread} a class)"
    groups = Counter(data.pool.groups[place] for place in classes)
    values: dict[str, Any] = {
        "classes": number,
        "images": int(counts.sum()),
        "fewest_images_of_a_class": least,
        "most_images_of_a_class": most,
        "median_images_of_a_class": median,
    }
    if set(groups) != {""}:
        text += f", {len(groups)} groups"
        values["groups"] = len(groups)
    return Fact(split, text, {"splits": {split: values}})


def _list_possible_tasks(data: ClassEpisodes) -> list[Fact]:
    """What tasks every split has room for, and why those that are asked for are not among them."""
    room = data.room
    fits = room.most_ways >= 2 and room.most_examples >= 2
    text = f"up to {room.most_ways} ways, and up to {room.most_examples} shots and queries together"
    values: dict[str, Any] = {"most_ways": int(room.most_ways), "most_shots_and_queries": int(room.most_examples)}
    facts = [Fact("tasks", text if fits else "none that every split has room for", {"tasks": values})]
    try:
        room.check(data.ways, data.recipe)
    except ConfigError as error:
        text = f"not possible: {error}"
        facts.append(Fact("as asked for", text, {"notes": [f"as asked for {text}"]}))
    return facts


def _describe_task(data: EpisodicDataModule) -> Fact:
    episode = data.episode(data.seed, "test", 0)
    parts = dict(zip(("support", "query"), episode, strict=False))
    text = ", ".join(f"{role} x {list(part.x.shape)}, y {list(part.y.shape)}" for role, part in parts.items())
    shapes = {role: {"x": list(part.x.shape), "y": list(part.y.shape)} for role, part in parts.items()}
    return Fact("a task", text, {"task": shapes})


def _join(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
