"""Modules and data as the shipped configs describe them."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from metalearn import Conv4, datamodules
from metalearn.cli.parser import Parser, instantiate
from metalearn.cli.shipped import config_path
from metalearn.datamodules import EpisodeOptions
from metalearn.image_classifier import load_module

__all__ = ["add_checkpoint", "make_data", "make_network", "open_checkpoint", "read_config"]


def read_config(name: str) -> dict[str, Any]:
    """A shipped config by its name."""
    config: dict[str, Any] = yaml.safe_load(config_path(name).read_text())
    return config


def make_data(config: dict[str, Any], root: str | None, **changes: Any) -> Any:
    """The config's data module over the files in ``root``, with other arguments where ``changes`` has them.

    Args:
        root: none for data that are made, as those of Glyphs.
    """
    kind = getattr(datamodules, config["data"]["class_path"])
    given = dict(config["data"]["init_args"])
    if "options" in given:
        parser = Parser()
        parser.add_argument("--options", type=EpisodeOptions)
        given["options"] = instantiate(parser, parser.parse_object({"options": given["options"]})).options
    found = {} if root is None else {"root": root}
    return kind(**{**given, **found, **changes})


def make_network(config: dict[str, Any]) -> Conv4:
    """The config's network."""
    return Conv4(ways=config["data"]["init_args"]["ways"], **config["model"]["init_args"]["backbone"]["init_args"])


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The options of a script that evaluates one checkpoint: which, and on which tasks."""
    parser.add_argument("checkpoint")
    parser.add_argument("--root", help="where the data are")
    parser.add_argument("--config", help="whose data these are; otherwise the one that the checkpoint is named after")
    parser.add_argument("--tasks", type=int, default=600)


def open_checkpoint(options: argparse.Namespace) -> tuple[Any, Any]:
    """The module of a checkpoint and its data, ready for as many test tasks, by the options of :func:`add_checkpoint`."""
    module, _ = load_module(options.checkpoint)
    name = options.config or options.checkpoint.rpartition("/")[2].removesuffix(".ckpt")
    data = make_data(read_config(name), options.root, test_tasks=options.tasks)
    data.setup()
    return module, data
