"""Modules and data as the shipped configs describe them."""

from __future__ import annotations

from typing import Any

import yaml

from metalearn import Conv4, datamodules
from metalearn.cli.shipped import config_path

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
    found = {} if root is None else {"root": root}
    return kind(**{**config["data"]["init_args"], **found, **changes})


def make_network(config: dict[str, Any]) -> Conv4:
    """The config's network."""
    return Conv4(ways=config["data"]["init_args"]["ways"], **config["model"]["init_args"]["backbone"]["init_args"])
