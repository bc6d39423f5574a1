"""What ``seeds`` and ``sweep`` share: their options, the training that they repeat, and the processes that run it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from metalearn.checks import find_nearest, quote_value
from metalearn.cli.arguments import DEFAULT_CONFIG
from metalearn.cli.parse_errors import explain
from metalearn.cli.rehearsal import Rehearsal, rehearse
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.levels.base import BilevelDataModule
from metalearn.errors import ConfigError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Processes, count_cores

__all__ = ["Options", "Request", "prepare", "print_json", "read_request"]

TAKEN = {
    "config": "name the config as the first word",
    "run_name": "use --output for the folder",
    "trainer.default_root_dir": "use --output for the folder",
    "ckpt_path": "the same command goes on by itself",
}
"""Options of ``fit`` that are not the user's here, and what to do instead."""
TOP = ("model", "data", "trainer", "test_after_fit", "seed_everything", "weights_only")
"""Options of ``fit`` without a dot."""
MOST = 8
"""Processes at once, where nothing is said."""


class Options(argparse.ArgumentParser):
    """The options of such a command. What they do not know belongs to ``fit``.

    Args:
        name: of the command.
        text: what it does.
        epilog: what follows the options in its help.
    """

    def __init__(self, name: str, text: str, epilog: str) -> None:
        super().__init__(
            prog=f"metalearn {name}", usage=f"metalearn {name} [CONFIG] [options] [options of fit]", description=text,
            epilog=epilog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self.add_argument("--processes", metavar="N", help="trainings at a time; they share the cores")
        self.add_argument("--output", metavar="DIR", help=f"the folder of it all; default: runs/CONFIG_{name}")
        self.add_argument(
            "--json", action="store_true", help="print the result as one JSON document, and nothing else there"
        )
        self.add_argument("--quiet", action="store_true", help="show no progress")

    def error(self, message: str) -> NoReturn:
        cause = sys.exc_info()[1]
        raise explain(self, message, cause) from cause


@dataclass(frozen=True)
class Request:
    """What a user asks of such a command.

    Attributes:
        options: its own.
        config: name or path of the configuration.
        words: the options of ``fit`` beside it.
    """

    options: argparse.Namespace
    config: str
    words: list[str]

    @property
    def fit(self) -> list[str]:
        """What follows ``metalearn fit``."""
        return ["--config", self.config, *self.words]


def read_request(parser: Options, args: Sequence[str]) -> Request:
    """Read a command line.

    Raises:
        ConfigError: an option is unknown or is not the user's, or a value is missing.
    """
    words = list(args)
    config = words.pop(0) if words and not words[0].startswith("-") else DEFAULT_CONFIG
    options, rest = parser.parse_known_args(words)
    own = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    for word in rest:
        name = word.split("=")[0].removeprefix("--").removesuffix("+")
        if word == "-c" or word.startswith("-c=") or name in TAKEN:
            name = "config" if word.startswith("-c") else name
            raise ConfigError(f"option {word.split('=')[0]} is not taken by {parser.prog}; {TAKEN[name]}")
        if word.startswith("--") and "." not in name and name not in TOP:
            near = find_nearest(name, [*own, *TOP], 1)
            remedy = f"did you mean --{near[0]}?" if near else "see --help for those that do"
            raise ConfigError(f"option {word.split('=')[0]} does not exist; {remedy}")
    return Request(options, config, rest)


def prepare(request: Request) -> Rehearsal:
    """Check the training that is to be repeated, and make its data ready once, before processes ask for them all at once.

    Raises:
        MetalearnError: an option is wrong, or the data are missing or do not give such tasks.
    """
    with contextlib.redirect_stdout(sys.stderr):
        rehearsal = rehearse(request.fit)
        logger = rehearsal.options["trainer"].get("logger")
        if logger not in (None, True):
            raise ConfigError(
                f"trainer.logger is {quote_value(logger)}, but what a run measures is read from its metrics.csv; leave it out"
            )
        if isinstance(rehearsal.data, EpisodicDataModule):
            rehearsal.data.ready()
        elif isinstance(rehearsal.data, BilevelDataModule):
            rehearsal.data.setup()
    return rehearsal


def read_monitor(rehearsal: Rehearsal) -> tuple[str, str]:
    """The validation measure by which a run's best checkpoint is chosen, and ``"max"`` or ``"min"``."""
    monitor = getattr(rehearsal.model, "checkpoint_monitor", None)
    return (str(monitor[0]), str(monitor[1])) if monitor is not None else ("val/loss", "min")


def read_steps(rehearsal: Rehearsal) -> int | None:
    """The outer steps of a training, where their number ends it."""
    steps = rehearsal.options["trainer"].get("max_steps", -1)
    return int(steps) if steps and int(steps) > 0 else None


def choose_folder(request: Request, rehearsal: Rehearsal, kind: str) -> Path:
    """Where it all is written."""
    output = request.options.output
    if output is not None and not output.strip():
        raise ConfigError("output is empty, but it must name a folder; write --output DIR, or leave it out")
    return Path(output) if output else Path("runs") / f"{rehearsal.name}_{kind}"


def make_processes(request: Request, rehearsal: Rehearsal, board: Board, jobs: int) -> Processes:
    """The processes that were asked for, or as many as the machine has room for."""
    devices = list_devices(rehearsal.options["trainer"])
    asked = request.options.processes
    if asked is None:
        count = min(max(jobs, 1), count_cores(), len(devices) or MOST)
    else:
        count = read_count("processes", asked)
    return Processes(count, board, devices if len(devices) > 1 else ())


def list_devices(trainer: Mapping[str, Any]) -> list[str]:
    """The CUDA devices that trainings may use, by name; none on a CPU."""
    uses = str(trainer.get("accelerator", "auto")) in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not uses or str(trainer.get("devices", "auto")) not in ("auto", "1"):
        return []
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(number) for number in range(torch.cuda.device_count())]


def read_count(name: str, text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ConfigError: it is none.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(
            f"{name} is {quote_value(text)}, but it must be a whole number of at least 1; write --{name} 2"
        )
    return int(text)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, allow_nan=False))
