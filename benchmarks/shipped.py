"""Modules and data as the shipped configs describe them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import yaml

from metalearn import Conv4, datamodules
from metalearn.cli.shipped import config_path
from metalearn.datamodules import EpisodeOptions

__all__ = ["make_data", "make_network", "read_config"]


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
    if isinstance(given.get("options"), dict):
        transforms = [make_object(each) for each in given["options"].get("augment", [])]
        given["options"] = EpisodeOptions(**{**given["options"], "augment": transforms})
    found = {} if root is None else {"root": root}
    return kind(**{**given, **found, **changes})


def make_object(described: dict[str, Any]) -> Any:
    """What a class path and its arguments describe."""
    module, _, name = described["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**described.get("init_args", {}))


def make_network(config: dict[str, Any]) -> Conv4:
    """The config's network."""
    return Conv4(ways=config["data"]["init_args"]["ways"], **config["model"]["init_args"]["backbone"]["init_args"])
