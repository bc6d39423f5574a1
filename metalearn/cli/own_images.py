"""Classify a user's own images, and keep the network that was adapted to their classes."""

from __future__ import annotations

import argparse
import logging
import shlex
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from metalearn.datamodules.episodes.likeness import find_unlikeness
from metalearn.datamodules.sources.folders import read_queries
from metalearn.errors import ConfigError
from metalearn.image_classifier import ImageClassifier, adapt_to_folder
from metalearn.reports.outcome import Fact
from metalearn.reports.pictures import draw_predictions
from metalearn.reports.summary import Summary
from metalearn.reports.tables import write_csv
from metalearn.shipping.files import read_adapted

__all__ = ["predict_folder"]

log = logging.getLogger(__name__)

MOST_ANSWERS = 20
"""Of so many images the class is printed; the table has all."""
KEEPS = ("save_adapted", "export")
"""The options that name a file to write the adapted network to."""
NARROW = 60
"""Columns of a list of classes, which the box of 80 columns holds."""


def predict_folder(asked: argparse.Namespace) -> Summary:
    """Adapt to the support folder or read what was adapted, keep it where that is asked for, and classify the query folder.

    Raises:
        MetalearnError: a folder, an image, the checkpoint or a file cannot be used.
    """
    check_targets(asked)
    if asked.adapted is not None:
        classifier = ImageClassifier.load(asked.adapted, asked.ckpt_path)
    else:
        classifier = adapt_to_folder(asked.ckpt_path, asked.support, asked.inner_steps, asked.rescale_steps)
    keeps = any(getattr(asked, option) for option in KEEPS)
    if keeps:  # so that the table is what the files will answer
        classifier = classifier.independent()
    answers: list[Fact] = []
    data: dict[str, object] = {}
    with ExitStack() as written:
        kept = keep(classifier, asked, written)
        if asked.query is not None:
            answers, data = answer(classifier, asked)
        written.pop_all()
    names = ", ".join(classifier.names)
    count = f"{classifier.support} images of " if classifier.support else ""
    facts = [
        Fact(
            "support",
            textwrap.fill(
                f"{count}{len(classifier.names)} classes: {names}",
                NARROW,
                break_long_words=False,
                break_on_hyphens=False,
            ),
            {"support": classifier.support, "classes": list(classifier.names)},
        ),
        *kept,
        *answers,
    ]
    known = {"command": "predict", "checkpoint": None if asked.ckpt_path is None else str(asked.ckpt_path)}
    return Summary("predict", facts, list_next(asked), data={**known, **data})


def check_targets(asked: argparse.Namespace) -> None:
    """Raise if a file that is to be written is there already, or is named twice.

    Raises:
        ConfigError: it is.
    """
    targets = {option: getattr(asked, option) for option in KEEPS if getattr(asked, option) is not None}
    for option, path in targets.items():
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{option} is {path}, but that is there already; name a new file, or remove that one")
    if len({path.absolute() for path in targets.values()}) < len(targets):
        raise ConfigError(
            f"{' and '.join(KEEPS)} are both {next(iter(targets.values()))}, but they are two files; name two"
        )


def keep(classifier: ImageClassifier, asked: argparse.Namespace, written: ExitStack) -> list[Fact]:
    """Write the files that are asked for.

    Args:
        classifier: whose network is kept.
        asked: the options.
        written: gets what takes each file away again.
    """
    facts = []
    for option, write, title in (
        ("save_adapted", classifier.save, "adapted"),
        ("export", classifier.export, "ONNX file"),
    ):
        path = getattr(asked, option)
        if path is not None:
            write(path)
            written.callback(path.unlink)
            facts.append(Fact(title, f"{path} ({path.stat().st_size / 1000:,.1f} kB)", {option: str(path)}))
    return facts


def list_next(asked: argparse.Namespace) -> list[Fact]:
    """The command that uses the adapted network again."""
    if asked.save_adapted is None:
        return []
    words = ["metalearn", "predict", "--adapted", str(asked.save_adapted), "--query", "FOLDER"]
    if read_adapted(asked.save_adapted)[1].backbone is None:
        words += ["--ckpt_path", str(asked.ckpt_path)]
    return [Fact("more images", shlex.join(words))]


def answer(classifier: ImageClassifier, asked: argparse.Namespace) -> tuple[list[Fact], dict[str, object]]:
    """Classify the query images, and write a table and a picture: lines of the summary, and its data."""
    names = classifier.names
    queries, paths = read_queries(asked.query, classifier.spec)
    unlike = find_unlikeness(queries, paths, classifier.spec, classifier.statistics)
    warn_of_unlikeness({"support": classifier.unlike, "query": unlike})
    shares = classifier(queries)
    best = shares.argmax(-1)
    chosen = [names[index] for index in best]
    rows = ([str(path), name, *map(float, row)] for path, name, row in zip(paths, chosen, shares, strict=True))
    table = write_csv(asked.output / "predictions.csv", ["image", "predicted", *names], rows)
    largest = list(shares[np.arange(len(best)), best])
    picture = draw_predictions(
        asked.output / "predictions.png", queries, chosen, largest, f"adapted to {asked.support or asked.adapted}"
    )
    facts = [
        Fact("queries", str(len(paths)), {"queries": len(paths)}),
        *list_answers(paths, chosen, largest, table),
        Fact("probabilities", str(table), {"predictions": str(table)}),
        Fact("picture", str(picture), {"pictures": [str(picture)]}),
    ]
    answers = [
        {"image": str(path), "predicted": name, "probability": float(share)}
        for path, name, share in zip(paths, chosen, largest, strict=True)
    ]
    return facts, {"answers": answers}


def list_answers(paths: Sequence[Path], chosen: Sequence[str], shares: Sequence[float], table: Path) -> list[Fact]:
    """The predicted class of each image with its probability: of the first ones where there are many."""
    answers = [
        Fact(path.name, f"{name} ({100 * share:.0f} %)")
        for path, name, share in zip(paths[:MOST_ANSWERS], chosen, shares, strict=False)
    ]
    left = len(paths) - len(answers)
    return [*answers, Fact("...", f"and {left} more in {table}")] if left else answers


def warn_of_unlikeness(reasons: dict[str, str | None]) -> None:
    """Say in one line which images are unlike the training images, and how.

    Args:
        reasons: for each role of images how they differ; ``None`` where nothing is seen.
    """
    lines = [
        f"the {role} images are unlike the training images: {how}" for role, how in reasons.items() if how is not None
    ]
    if lines:
        log.warning(f"{'; '.join(lines)}. The probabilities say little there; train on images like these")
