"""The checkpoints that come with the package, by name. Finding them needs no torch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

__all__ = ["checkpoint_path", "shipped_checkpoints", "shipped_folder"]


def shipped_folder() -> Path:
    """Where the shipped checkpoints lie, with ``manifest.json``, which says how each was trained and what it reached.

    They are beside the configurations, in a checkout as well as in an installed package.
    """
    return Path(str(resources.files("metalearn.configs"))).parent / "checkpoints"


def shipped_checkpoints() -> dict[str, Path]:
    """The checkpoints of the package by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.ckpt"))}


def checkpoint_path(name: str | Path) -> str:
    """A file, or the shipped checkpoint of that name. What is neither stays as it is, and fails where it is read.

    Example:
        >>> from metalearn.carried.shipped import checkpoint_path
        >>> checkpoint_path("maml_glyphs_5w1s").endswith("checkpoints/maml_glyphs_5w1s.ckpt")
        True
    """
    text = os.fspath(name)
    return text if os.path.lexists(text) else str(shipped_checkpoints().get(text.removesuffix(".ckpt"), text))
