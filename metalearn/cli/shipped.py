"""The shipped configurations by name; reading them needs no torch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from metalearn.checks import find_nearest, quote_value
from metalearn.cli.config_files import check_config
from metalearn.errors import ConfigError

__all__ = ["DEFAULT_CONFIG", "config_path", "shipped_configs"]

DEFAULT_CONFIG = "maml_glyphs_5w1s"


def shipped_configs() -> dict[str, Path]:
    """The configurations of the package by name."""
    folder = Path(str(resources.files("metalearn.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def config_path(name: str) -> Path:
    """A file, or the shipped configuration of that name.

    Raises:
        ConfigError: there is neither; the line names the nearest matches.
    """
    path = Path(name)
    if name and os.path.exists(path):
        check_config(path)
        return path
    known = shipped_configs()
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    near = find_nearest(path.name.removesuffix(".yaml"), list(known))
    remedy = f"did you mean {', '.join(near)}?" if near else "metalearn list configs shows those that are shipped"
    raise ConfigError(f"config {quote_value(name)} is neither a file nor a shipped config; {remedy}")
