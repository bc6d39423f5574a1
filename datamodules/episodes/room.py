"""Whether there are enough classes and examples for tasks, and what there is room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from metalearn.checks import Count
from metalearn.datamodules.episodes.sampling import Recipe
from metalearn.errors import ConfigError

__all__ = ["Room"]


class Room(NamedTuple):
    """What the splits of a data set hold.

    Attributes:
        owner: what messages call the data module.
        classes: of each split that is used, turned ones included.
        counts: for each class of these splits its examples, its name and its split.
        total: the classes of all splits.
        splittable: the splits are the user's to choose.
    """

    owner: str
    classes: Mapping[str, int]
    counts: list[tuple[int, str, str]]
    total: int
    splittable: bool

    @classmethod
    def of(
        cls, owner: str, names: list[str], counts: np.ndarray, splits: Mapping[str, np.ndarray], turns: Mapping[str, int],
        meant_empty: set[str], splittable: bool,
    ) -> Room:  # fmt: skip
        """The room in ``splits``, for each the numbers of its classes; those that are meant to be empty count only if not."""
        used = [split for split, classes in splits.items() if len(classes) or split not in meant_empty]
        listed = [(int(counts[number]), names[number], split) for split in used for number in splits[split]]
        sizes = {split: len(splits[split]) * turns[split] for split in used}
        return cls(owner, sizes, listed, sum(map(len, splits.values())), splittable)

    @property
    def most_ways(self) -> int:
        """The most ways that every split has classes for."""
        return min(self.classes.values(), default=0)

    @property
    def most_examples(self) -> int:
        """The most examples of a class that every class has."""
        return min((count for count, _, _ in self.counts), default=0)

    def check(self, ways: Count, recipe: Recipe) -> None:
        """Raise where there are too few classes or examples for the tasks of a recipe.

        Raises:
            ConfigError: the line says what there is room for.
        """
        needed = recipe.ways[1] + recipe.distractors
        short = next((split for split, have in self.classes.items() if needed > have), None)
        if short is not None:
            extra = f" and distractors {recipe.distractors}" if recipe.distractors else ""
            have = self.classes[short]
            raise ConfigError(
                f"ways is {ways}{extra}, but the {short} split of {self.owner} has {have} {'class' if have == 1 else 'classes'}; "
                + self._advise_ways(self.most_ways - recipe.distractors)
            )
        if recipe.most > self.most_examples and self.counts:
            fewest, name, split = min(self.counts, key=lambda row: row[0])
            parts = {"shots": recipe.shots[1], "queries": recipe.queries[1]}
            if recipe.unlabeled:
                parts["unlabeled"] = recipe.unlabeled
            enough = (
                f"use at most {fewest} together" if fewest >= len(parts) else "add images to it, or leave the class out"
            )
            raise ConfigError(
                f"{' + '.join(parts)} is {' + '.join(map(str, parts.values()))} = {recipe.most}, but class {name} of the {split} "
                f"split has {fewest} {'image' if fewest == 1 else 'images'}; {enough}"
            )

    def _advise_ways(self, most: int) -> str:
        if most >= 2:
            return f"use at most {most} ways"
        if not self.splittable or self.total < 2:
            return "add classes, at least 2 for each split"
        alone = f"splits=[1, 0, 0] and at most {self.total} ways to train on all {self.total} classes without validation and test"
        third = self.total // 3
        return f"use splits=[0.34, 0.33, 0.33] and at most {third} ways, or {alone}" if third >= 2 else f"use {alone}"
