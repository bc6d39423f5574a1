"""The help of ``fit``, ``validate``, ``test`` and ``predict``: what most users need, and where the rest is listed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning import LightningDataModule, LightningModule
from torch import nn

from metalearn.cli.commands import COMMANDS
from metalearn.cli.help import describe_action, find_checks
from metalearn.cli.layouts import list_options
from metalearn.cli.output import OPTIONS
from metalearn.cli.parser import Parser
from metalearn.cli.screen import Option, Screen, Section, print_screen
from metalearn.cli.shipped import DEFAULT_CONFIG
from metalearn.cli.type_words import list_names
from metalearn.datamodules import GlyphsDataModule
from metalearn.modules import MAML

__all__ = ["TrainerHelp", "show_command"]


@dataclass(frozen=True)
class Row:
    """A line of the help of a command.

    Attributes:
        option: its name, without dashes.
        text: what it does; empty for the text of the option itself.
        only: the commands that show it.
    """

    option: str
    text: str = ""
    only: Sequence[str] = ("fit", "validate", "test", "predict")


FIT, EVALUATE = ("fit",), ("validate", "test", "predict")

ROWS = {
    "Start": (
        Row("config NAME", f"A shipped configuration or a YAML file; metalearn list configs. [default {DEFAULT_CONFIG}]", FIT),
        Row("ckpt_path PATH", "Go on from this checkpoint; last or best for the newest run of the configuration.", FIT),
        Row("ckpt_path PATH", "A checkpoint, or the name of a shipped one. It brings its configuration along.", EVALUATE),
        Row("start_from PATH", "Take the network's weights from this checkpoint, of whatever algorithm."),
        Row("config NAME", "Use this configuration instead of the checkpoint's.", EVALUATE),
    ),
    "Data": (
        Row("data CLASS", "The data set: {datasets}, or a class of yours by its full name."),
        Row("data.ways"), Row("data.shots"), Row("data.queries"), Row("data.tasks_per_batch", only=FIT),
        Row("data.test_tasks", only=("test", "predict")), Row("data.val_tasks", only=("validate",)),
        Row("data.help CLASS", "List all options of a data set."),
    ),
    "Algorithm": (
        Row("model CLASS", "The algorithm: {models}, or a class of yours by its full name."),
        Row("model.inner_steps", only=FIT), Row("model.inner_lr", only=FIT), Row("model.first_order", only=FIT),
        Row("model.outer_optimizer", only=FIT), Row("model.eval_inner_steps", only=EVALUATE),
        Row("model.help CLASS", "List all options of an algorithm."),
    ),
    "Network": (
        Row("model.backbone CLASS", "The network: {networks}, or any torch.nn.Module by its full name.", FIT),
        Row("model.backbone.NAME", "An argument of the network, such as --model.backbone.hidden 32.", FIT),
        Row("model.backbone.help CLASS", "List the arguments of a network.", FIT),
    ),
    "Training": (
        Row("trainer.max_steps N", "How many outer steps to train; -1 for no bound. [default -1]", FIT),
        Row("trainer.max_time TIME", "How long to train, as DD:HH:MM:SS.", FIT),
        Row("trainer.val_check_interval N", "Validate after this many outer steps, or this share of an epoch. [default 1.0]",
            FIT),
        Row("advise true|apply", "Measure what inner_lr should be and say it, or set it, too. [default false]", FIT),
        Row("trainer.accelerator NAME", "Where to compute: auto, cpu, gpu or mps. [default auto]"),
        Row("trainer.devices N", "How many processes or GPUs. [default auto]"),
        Row("trainer.precision NAME", "The type of numbers, such as 32-true or bf16-mixed. [default 32-true]"),
        Row("seed_everything N", "The seed of the initial weights and of dropout. [default 0]"),
        Row("trainer.help", "List all options of Lightning's Trainer."),
    ),
    "Output": (
        Row("run_name NAME", "The folder below runs/ to write to. [default: the configuration's name]"),
        Row("test_after_fit true|false", "Test the best checkpoint at the end. [default true]", FIT),
        Row("trainer.logger CLASS", "Another logger, such as TensorBoardLogger. [default: tables as CSV]"),
        Row("print_config", "Print the whole configuration, and do nothing else."),
    ),
}  # fmt: skip
NOTE = "A configuration changes these defaults, and an option changes the configuration."


def show_command(command: str) -> Screen:
    """The help of one of LightningCLI's subcommands; it needs no parser of that command, which takes seconds to make."""
    known = _describe_examples()
    names = {
        "datasets": _list_ours(LightningDataModule),
        "models": _list_ours(LightningModule),
        "networks": _list_ours(nn.Module),
    }
    sections = []
    for title, rows in ROWS.items():
        options = [
            Option(f"--{row.option}", row.text.format(**names)) if row.text else known[row.option]
            for row in rows
            if command in row.only
        ]
        title = "Machine" if title == "Training" and command != "fit" else title
        options += [Option(name, text) for name, text in OPTIONS.items()] if title == "Output" else []
        sections += [Section(title, options)] if options else []
    return Screen(f"metalearn {command} [options]", COMMANDS[command].text, sections, [NOTE])


class TrainerHelp(argparse.Action):
    """``--trainer.help``: all options of Lightning's Trainer."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest=dest, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        actions = [action for action in list_options(parser._actions) if action.dest.startswith("trainer.")]
        options = [describe_action(action, "--trainer.") for action in actions]
        options = [replace(option, name=option.name.partition(" ")[0]) for option in options]
        intro = "The options of Lightning's Trainer, as Lightning describes them. Each is --trainer.NAME VALUE."
        print_screen(Screen("", intro, [Section("Trainer", options)]))
        parser.exit()


def _describe_examples() -> dict[str, Option]:
    """The options of an algorithm and a data set of the default configuration, which others share."""
    parser = Parser()
    described = {}
    for key, kind in {"model": MAML, "data": GlyphsDataModule}.items():
        parser.add_class_arguments(kind, key)
        checks = find_checks(kind)
        for action in list_options(parser._actions):
            if action.dest.startswith(f"{key}."):
                described[action.dest] = describe_action(action, check=checks.get(action.dest.removeprefix(f"{key}.")))
    return described


def _list_ours(kind: type) -> str:
    return ", ".join(list_names([kind])[0])
