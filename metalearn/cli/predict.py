"""``metalearn predict``: the options for a user's own images, and those for the test tasks of a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from metalearn.checks import find_nearest
from metalearn.cli import lightning_cli
from metalearn.cli.command_help import show_command
from metalearn.cli.commands import Call
from metalearn.cli.help import describe_action
from metalearn.cli.layouts import list_options
from metalearn.cli.own_images import predict_folder
from metalearn.cli.parse_errors import explain
from metalearn.cli.screen import Screen, Section, print_screen
from metalearn.cli.stray_options import explain_stray
from metalearn.errors import ConfigError
from metalearn.reports.summary import Summary

__all__ = ["make_help", "make_parser", "run"]

OF_STEPS = ("inner_steps", "rescale_steps")
"""The options that say how a network adapts."""
OPTIONS = (
    "--support", "--adapted", "--query", "--output", "--save_adapted", "--save-adapted", "--export",
    *(f"--{name}" for name in OF_STEPS),
)  # fmt: skip
"""Any of them says that a user's own images are meant."""


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            raise explain(self, message)
        raise ConfigError(f"predict of your own images: {message}; see metalearn predict --help")


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
        return predict_folder(read_request(call.words[1:]))
    return lightning_cli.run(call)


def make_help() -> Screen:
    """The options for a user's own images, and those for the test tasks of a data set."""
    own = Section(
        "Your own images",
        [describe_action(action) for action in list_options(make_parser()._actions)],
        "One table and one picture show the class of every query image. What is saved or "
        "exported answers to each image by itself, and so does the table beside it.",
    )
    screen = show_command("predict")
    start, *others = screen.sections
    tasks = replace(start, title="Test tasks of a data set", note="Without the options above these are predicted.")
    return replace(screen, sections=[own, tasks, *others])


def make_parser() -> argparse.ArgumentParser:
    """The options for a user's own images."""
    parser = _Arguments(prog="metalearn predict", allow_abbrev=False, add_help=False)
    parser.add_argument(
        "--ckpt_path", metavar="PATH", help="the checkpoint; with --adapted only where it holds no whole network"
    )
    parser.add_argument(
        "--support", type=_folder, metavar="FOLDER", help="labelled images, with a sub-folder for each class"
    )
    parser.add_argument(
        "--adapted", type=_file, metavar="FILE", help="what --save_adapted wrote, in the place of --support"
    )
    parser.add_argument("--query", type=_folder, metavar="FOLDER", help="the images to classify")
    parser.add_argument(
        "--output", type=_folder, default=Path("predictions"), metavar="FOLDER", help="the folder to write to"
    )
    parser.add_argument(
        "--save_adapted", "--save-adapted", type=_file, metavar="FILE", help="a new .safetensors file, for what adapted"
    )
    parser.add_argument("--export", type=_file, metavar="FILE", help="a new ONNX file, for the adapted network")
    parser.add_argument(
        "--inner_steps",
        type=int,
        metavar="N",
        help="how many steps adapt; those of the checkpoint's evaluation otherwise",
    )
    parser.add_argument(
        "--rescale_steps", type=float, metavar="FACTOR",
        help="multiply the inner step sizes; 0.5 where there are more classes than in training",
    )  # fmt: skip
    return parser


def read_request(words: Sequence[str]) -> argparse.Namespace:
    """The options of a call for a user's own images.

    Raises:
        ConfigError: one is missing, wrong, or does not go with another.
    """
    parser = make_parser()
    asked = parser.parse_args(list(words))
    if asked.adapted is not None and asked.support is not None:
        parser.error("--support and --adapted are both given, but a model is adapted once; leave one of them out")
    for name in OF_STEPS:
        if getattr(asked, name) is not None and asked.support is None:
            parser.error(
                f"--{name} says how a network adapts, but there is no --support that it adapts to; leave it out"
            )
    required = [
        *(["--ckpt_path"] if asked.ckpt_path is None and asked.adapted is None else []),
        *(["--support (or --adapted)"] if asked.support is None and asked.adapted is None else []),
        *(["--query"] if asked.query is None and asked.save_adapted is None and asked.export is None else []),
    ]
    if required:
        parser.error(f"the following arguments are required: {', '.join(required)}")
    return asked


def _folder(text: str) -> Path:
    if not text:  # a shell's variable that is not set
        raise argparse.ArgumentTypeError("it is empty, but it must name a folder; write . for the working folder")
    return Path(text)


def _file(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty, but it must name a file; leave the option out for none")
    return Path(text)
