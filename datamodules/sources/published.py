"""Class splits as they were published: facts that never depend on a seed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from metalearn.datamodules.sources.listing import SPLITS, ListedClass, log_once

__all__ = [
    "CIFAR_FS",
    "FC100",
    "MINI_IMAGENET",
    "SUPERCLASSES",
    "Published",
    "PublishedCounts",
    "PublishedSplit",
    "PublishedTotal",
    "Split",
]

Split = dict[str, tuple[str, ...]]


def _split_words(lists: Mapping[str, str]) -> Split:
    return {name: tuple(text.split()) for name, text in lists.items()}


MINI_IMAGENET = _split_words({
    "train": """
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831
        n02101006 n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408
        n02606052 n02687172 n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743
        n03220513 n03337140 n03347037 n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605
        n03908618 n03924679 n03998194 n04067472 n04243546 n04251144 n04258138 n04275548 n04296562 n04389033
        n04435653 n04443257 n04509417 n04515003 n04596742 n04604644 n04612504 n06794110 n07584110 n07697537
        n07747607 n09246464 n13054560 n13133613
    """,
    "val": """
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042
        n03535780 n03584254 n03770439 n03773504 n03980874 n09256479
    """,
    "test": """
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525
        n03127925 n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
    """,
})  # fmt: skip
"""miniImageNet: Ravi and Larochelle 2017; 64, 16 and 20 classes of ImageNet."""

SUPERCLASSES = _split_words({
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
})  # fmt: skip
"""CIFAR-100: Krizhevsky 2009; 20 superclasses of 5 classes each."""

CIFAR_FS = _split_words({
    "train": """
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud
        cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower
        lion lizard lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate
        porcupine possum rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar
        sunflower tank tiger train trout tulip turtle willow_tree wolf
    """,
    "val": """
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark
        television tractor
    """,
    "test": """
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper
        table telephone wardrobe whale woman worm
    """,
})  # fmt: skip
"""CIFAR-FS: Bertinetto et al. 2019; 64, 16 and 20 classes of CIFAR-100."""

FC100_SUPERCLASSES = _split_words({
    "train": """
        fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
        large_man-made_outdoor_things large_natural_outdoor_scenes reptiles trees vehicles_1 vehicles_2
    """,
    "val": """
        large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals
    """,
    "test": """
        aquatic_mammals insects medium_mammals people
    """,
})  # fmt: skip
FC100: Split = {
    split: tuple(sorted(name for group in groups for name in SUPERCLASSES[group]))
    for split, groups in FC100_SUPERCLASSES.items()
}
"""FC100: Oreshkin et al. 2018; 12, 4 and 4 superclasses of CIFAR-100, so 60, 20 and 20 classes."""


BEYOND = "accuracies do not compare with published ones"


class Published(Protocol):
    """What is published of a data set's classes."""

    def compare(self, where: str, listed: Sequence[ListedClass]) -> None:
        """Log where the classes that are there are others than the published ones.

        Args:
            where: the data set and its place, for the line.
            listed: the classes that are there.
        """


@dataclass(frozen=True)
class PublishedSplit:
    """The classes of each split by name. Data of other names altogether are somebody's own, and nothing is said of them.

    Attributes:
        split: the names of train, val and test.
    """

    split: Split

    def compare(self, where: str, listed: Sequence[ListedClass]) -> None:
        """Log classes that are missing, more than the published ones, or in another split."""
        place = {name: split for split, names in self.split.items() for name in names}
        here = {cls.name: cls.split for cls in listed}
        shared = here.keys() & place.keys()
        moved = sorted(name for name in shared if place[name] != here[name])
        if here.keys() == place.keys() and moved:
            log_once(
                logging.WARNING,
                f"{where}: the classes are the published ones, but {len(moved)} are in another split ({moved[0]} in "
                f"{here[moved[0]]}, published in {place[moved[0]]}): {BEYOND}",
            )
        elif here.keys() != place.keys() and shared:
            log_once(
                logging.WARNING,
                f"{where}: {len(shared)} of the {len(here)} classes here are among the {len(place)} published ones, {len(moved)} "
                f"of them in another split: {BEYOND}",
            )


@dataclass(frozen=True)
class PublishedCounts:
    """How many classes each split has, where names differ from copy to copy.

    Attributes:
        counts: of train, val and test.
    """

    counts: Mapping[str, int]

    def compare(self, where: str, listed: Sequence[ListedClass]) -> None:
        """Log a split of another size."""
        here = Counter(cls.split for cls in listed)
        if here != self.counts:
            sizes = ("/".join(str(counts[split]) for split in SPLITS) for counts in (here, self.counts))
            log_once(logging.WARNING, "{} has {} classes, published are {}: {}".format(where, *sizes, BEYOND))


@dataclass(frozen=True)
class PublishedTotal:
    """How many classes there are, where their split follows from their names.

    Attributes:
        total: of all splits.
    """

    total: int

    def compare(self, where: str, listed: Sequence[ListedClass]) -> None:
        """Log another number of classes."""
        if len(listed) != self.total:
            log_once(logging.WARNING, f"{where} has {len(listed)} of its {self.total} classes: {BEYOND}")
