"""``predict --ckpt_path CKPT --support FOLDER --query FOLDER``: adapt a checkpoint to a user's own classes."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from metalearn.carried import read_checkpoint, read_entry
from metalearn.carried.classes import MODULES, find_class, short
from metalearn.datamodules.episodes.likeness import Statistics, find_unlikeness
from metalearn.datamodules.sources.folders import list_images, read_queries, read_support
from metalearn.datamodules.sources.images import ImageSpec, to_float
from metalearn.episode import Batch
from metalearn.errors import CheckpointError, ConfigError
from metalearn.inner import AdaptedModel
from metalearn.modules import MetaModule
from metalearn.reports.pictures import draw_predictions
from metalearn.reports.summary import print_summary
from metalearn.reports.tables import write_csv

__all__ = ["ImageClassifier", "adapt_to_folder", "load_module", "predict"]


log = logging.getLogger(__name__)

OPTIONS = ("--support", "--query", "--output")
"""Any of them says that a user's own images are meant."""


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"predict with --support: {message}; see python -m metalearn predict --support X --help")


def predict(args: Sequence[str]) -> None:
    """Adapt to the support folder, classify the query folder, and write a table and a picture.

    Raises:
        MetalearnError: a folder, an image or the checkpoint cannot be used.
    """
    parser = _Arguments(
        prog="metalearn predict", allow_abbrev=False, description="Adapt a checkpoint to your own classes of images."
    )
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint")
    parser.add_argument("--support", required=True, type=_folder, help="labelled images: a sub-folder per class")
    parser.add_argument("--query", required=True, type=_folder, help="images to classify")
    parser.add_argument("--output", type=_folder, default=Path("predictions"), help="the folder to write to")
    given = parser.parse_args(list(args))
    classifier = adapt_to_folder(given.ckpt_path, given.support)
    queries, paths = read_queries(given.query, classifier.spec)
    warn_of_unlikeness(
        {
            "support": classifier.unlike,
            "query": find_unlikeness(queries, paths, classifier.spec, classifier.statistics),
        }
    )
    names = classifier.names
    shares = classifier(queries)
    best = shares.argmax(-1)
    chosen = [names[index] for index in best]
    rows = ([str(path), name, *map(float, row)] for path, name, row in zip(paths, chosen, shares, strict=True))
    table = write_csv(given.output / "predictions.csv", ["image", "predicted", *names], rows)
    picture = draw_predictions(
        given.output / "predictions.png",
        queries,
        chosen,
        list(shares[np.arange(len(best)), best]),
        f"adapted to {given.support}",
    )
    print_summary(
        "predict",
        [
            ("support", f"{classifier.support} images of {len(names)} classes: {', '.join(names)}"),
            ("queries", str(len(paths))),
            ("probabilities", str(table)),
            ("picture", str(picture)),
        ],
    )


def _folder(given: str) -> Path:
    if not given:  # a shell's variable that is not set
        raise argparse.ArgumentTypeError("it is empty, but it must name a folder; write . for the working folder")
    return Path(given)


@dataclass(frozen=True)
class ImageClassifier:
    """A network that was adapted to a user's classes of images.

    Attributes:
        names: the classes.
        spec: how images are read.
        adapted: the network.
        support: how many images it was adapted to.
        statistics: of the training images, where the checkpoint has them.
        unlike: how the images that it was adapted to differ from the training images; ``None`` where nothing is seen.
    """

    names: list[str]
    spec: ImageSpec
    adapted: AdaptedModel
    support: int
    statistics: Statistics | None = None
    unlike: str | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities ``[n, N]`` of uint8 images ``[n, C, H, W]`` as :func:`read_queries` gives them."""
        found: np.ndarray = self.adapted.probabilities(to_float(images, self.spec)).numpy()
        return found

    def classify_folder(self, folder: str | Path) -> dict[Path, str]:
        """The class of every image in a folder and all folders below it.

        Raises:
            DataError: there are none, or one cannot be read.
        """
        images, paths = read_queries(Path(folder), self.spec)
        return {path: self.names[index] for path, index in zip(paths, self(images).argmax(-1), strict=True)}


def adapt_to_folder(checkpoint: str | Path, support: str | Path) -> ImageClassifier:
    """Adapt a checkpoint to labelled images: a sub-folder per class, of which there may be fewer or more than in training.

    With more classes than the checkpoint tells apart, the head starts from the mean of its rows, see
    :meth:`~metalearn.modules.MetaModule.adapt`.

    Raises:
        MetalearnError: the checkpoint, the folder or an image cannot be used, or the network cannot be widened.
    """
    module, spec = load_module(checkpoint)
    images, labels, names = read_support(Path(support), spec)
    adapted = module.adapt(Batch(to_float(images, spec), torch.from_numpy(labels)), ways=len(names))
    known = module.image_statistics
    files = [file for found in list_images(Path(support)).values() for file in found]
    return ImageClassifier(names, spec, adapted, len(labels), known, find_unlikeness(images, files, spec, known))


def warn_of_unlikeness(found: dict[str, str | None]) -> None:
    """Say in one line which images are unlike the training images, and how."""
    told = [
        f"the {name} images are unlike the training images: {how}" for name, how in found.items() if how is not None
    ]
    if told:
        log.warning(f"{'; '.join(told)}. The probabilities say little there; train on images like these")


def load_module(path: str | Path) -> tuple[MetaModule, ImageSpec]:
    """The module of a checkpoint, in ``eval()`` on the CPU, and how it reads images.

    Raises:
        CheckpointError: the checkpoint cannot be read, is of a foreign class, or was not trained on images.
    """
    entry = read_entry(read_checkpoint(path), path)
    name = entry.class_path
    kind = find_class(name, MODULES)
    if kind is None or not issubclass(kind, MetaModule):
        raise CheckpointError(
            f"checkpoint {path} is of {short(name) if name else 'no class of ours'}, which is not built from a file unasked; use "
            "YourModule.load_from_checkpoint(path) and its adapt()"
        )
    if entry.image_spec is None:
        raise CheckpointError(
            f"checkpoint {path} does not say how its images are read, so it was not trained on images by a data module of ours; "
            "use load_from_checkpoint(path) and adapt() with your own tensors"
        )
    module: MetaModule = kind.load_from_checkpoint(path, map_location="cpu")
    return module.eval(), ImageSpec.from_dict(entry.image_spec)
