"""``python -m metalearn predict --ckpt_path CKPT --support FOLDER --query FOLDER``: classify a user's own images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from metalearn.checks import find_nearest
from metalearn.cli import lightning_cli
from metalearn.cli.command_help import show_command
from metalearn.cli.commands import Call
from metalearn.cli.help import describe_action
from metalearn.cli.layouts import list_options
from metalearn.cli.parse_errors import explain
from metalearn.cli.screen import Screen, Section, print_screen
from metalearn.cli.stray_options import explain_stray
from metalearn.datamodules.episodes.likeness import find_unlikeness
from metalearn.datamodules.sources.folders import read_queries
from metalearn.errors import ConfigError
from metalearn.image_classifier import adapt_to_folder
from metalearn.reports.outcome import Fact
from metalearn.reports.pictures import draw_predictions
from metalearn.reports.summary import Summary
from metalearn.reports.tables import write_csv

__all__ = ["make_help", "make_parser", "run"]

log = logging.getLogger(__name__)

OPTIONS = ("--support", "--query", "--output")
"""Any of them says that a user's own images are meant."""
MOST_ANSWERS = 20
"""Of so many images the class is printed; the table has all."""


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            raise explain(self, message)
        raise ConfigError(f"predict with --support: {message}; see metalearn predict --help")


def run(call: Call) -> Summary | None:
    """Classify a user's own images, or what the data module of a configuration predicts.

    Raises:
        MetalearnError: a folder, an image, the checkpoint or an argument cannot be used.
    """
    if {"-h", "--help"} & set(call.words):
        print_screen(make_help())
        return None
    options = [word.split("=")[0] for word in call.words if word.startswith("--")]
    for option in options:
        near = find_nearest(option, OPTIONS, 1)
        if near and option not in OPTIONS:
            raise explain_stray(option, near)
    if set(OPTIONS) & set(options):
        return predict_folder(call.words[1:])
    return lightning_cli.run(call)


def make_help() -> Screen:
    """The options for a user's own images, and those for the test tasks of a data set."""
    own = Section(
        "Your own images",
        [describe_action(action) for action in list_options(make_parser()._actions)],
        "One table and one picture show the class of every query image.",
    )
    screen = show_command("predict")
    start, *others = screen.sections
    tasks = replace(start, title="Test tasks of a data set", note="Without --support and --query these are predicted.")
    return replace(screen, sections=[own, tasks, *others])


def predict_folder(args: Sequence[str]) -> Summary:
    """Adapt to the support folder, classify the query folder, and write a table and a picture.

    Raises:
        MetalearnError: a folder, an image or the checkpoint cannot be used.
    """
    asked = make_parser().parse_args(list(args))
    classifier = adapt_to_folder(asked.ckpt_path, asked.support)
    queries, paths = read_queries(asked.query, classifier.spec)
    unlike = find_unlikeness(queries, paths, classifier.spec, classifier.statistics)
    warn_of_unlikeness({"support": classifier.unlike, "query": unlike})
    names = classifier.names
    shares = classifier(queries)
    best = shares.argmax(-1)
    chosen = [names[index] for index in best]
    rows = ([str(path), name, *map(float, row)] for path, name, row in zip(paths, chosen, shares, strict=True))
    table = write_csv(asked.output / "predictions.csv", ["image", "predicted", *names], rows)
    largest = list(shares[np.arange(len(best)), best])
    picture = draw_predictions(
        asked.output / "predictions.png", queries, chosen, largest, f"adapted to {asked.support}"
    )
    facts = [
        Fact(
            "support",
            f"{classifier.support} images of {len(names)} classes: {', '.join(names)}",
            {"support": classifier.support, "classes": list(names)},
        ),
        Fact("queries", str(len(paths)), {"queries": len(paths)}),
        *list_answers(paths, chosen, largest, table),
        Fact("probabilities", str(table), {"predictions": str(table)}),
        Fact("picture", str(picture), {"pictures": [str(picture)]}),
    ]
    answers = [
        {"image": str(path), "predicted": name, "probability": float(share)}
        for path, name, share in zip(paths, chosen, largest, strict=True)
    ]
    data = {"command": "predict", "checkpoint": str(asked.ckpt_path), "answers": answers}
    return Summary("predict", facts, data=data)


def list_answers(paths: Sequence[Path], chosen: Sequence[str], shares: Sequence[float], table: Path) -> list[Fact]:
    """The predicted class of each image with its probability: of the first ones where there are many."""
    answers = [
        Fact(path.name, f"{name} ({100 * share:.0f} %)")
        for path, name, share in zip(paths[:MOST_ANSWERS], chosen, shares, strict=False)
    ]
    left = len(paths) - len(answers)
    return [*answers, Fact("...", f"and {left} more in {table}")] if left else answers


def make_parser() -> argparse.ArgumentParser:
    """The options for a user's own images."""
    parser = _Arguments(prog="metalearn predict", allow_abbrev=False, add_help=False)
    parser.add_argument("--ckpt_path", required=True, metavar="PATH", help="the checkpoint")
    parser.add_argument(
        "--support",
        required=True,
        type=_folder,
        metavar="FOLDER",
        help="labelled images, with a sub-folder for each class",
    )
    parser.add_argument("--query", required=True, type=_folder, metavar="FOLDER", help="the images to classify")
    parser.add_argument(
        "--output", type=_folder, default=Path("predictions"), metavar="FOLDER", help="the folder to write to"
    )
    return parser


def _folder(text: str) -> Path:
    if not text:  # a shell's variable that is not set
        raise argparse.ArgumentTypeError("it is empty, but it must name a folder; write . for the working folder")
    return Path(text)


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
