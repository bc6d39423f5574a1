"""What ``metalearn data`` says of a data set: its images, its splits, and the tasks that they have room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.datamodules import ClassEpisodes, EpisodicDataModule, ImageEpisodes
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.errors import ConfigError
from metalearn.reports.listing import Listing
from metalearn.reports.outcome import Fact

__all__ = ["describe_splits", "list_facts", "tabulate_splits"]


def list_facts(data: EpisodicDataModule) -> list[Fact]:
    """The lines of a data set that is set up."""
    facts: list[Fact] = []
    if isinstance(data, ImageEpisodes):
        facts += _list_store(data)
    if isinstance(data, ClassEpisodes):
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


def describe_splits(data: ClassEpisodes) -> dict[str, dict[str, Any]]:
    """The classes and images of each split."""
    return {split: _describe_split(data, split) for split in SPLITS}


def _describe_split(data: ClassEpisodes, split: str) -> dict[str, Any]:
    classes = data.splits[split]
    if not len(classes):
        return {"classes": 0, "images": 0}
    counts = data.pool.counts[classes]
    groups = {data.pool.groups[place] for place in classes}
    return {
        "classes": int(data.num_classes(split)),
        "images": int(counts.sum()),
        "fewest_images_of_a_class": int(counts.min()),
        "median_images_of_a_class": float(np.median(counts)),
        "most_images_of_a_class": int(counts.max()),
        "groups": 0 if groups == {""} else len(groups),
    }


def tabulate_splits(splits: Mapping[str, Mapping[str, Any]]) -> Listing:
    """A row for each split; the column of groups is left out where there are none.

    Args:
        splits: as :func:`describe_splits` gives them.
    """
    columns = {"split": "split", "classes": "classes", "images": "images", "spread": "images of a class"}
    if any(split.get("groups") for split in splits.values()):
        columns["groups"] = "groups"
    rows = [
        {
            "split": name,
            "classes": f"{split['classes']:,}",
            "images": f"{split['images']:,}",
            "spread": _describe_spread(split),
            "groups": split.get("groups"),
        }
        for name, split in splits.items()
    ]
    return Listing("splits", columns, rows)


def _describe_spread(split: Mapping[str, Any]) -> str:
    if not split["classes"]:
        return "none"
    least, most = split["fewest_images_of_a_class"], split["most_images_of_a_class"]
    return f"{least}" if least == most else f"{least} to {most}, median {split['median_images_of_a_class']:g}"


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
