"""What a user may have meant by an option that does not exist."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from lightning import LightningDataModule, LightningModule

from metalearn.checks import find_nearest
from metalearn.cli.output import OPTIONS
from metalearn.cli.shipped import shipped_configs
from metalearn.cli.type_words import find_ours
from metalearn.errors import ConfigError

__all__ = ["explain_stray", "explain_word", "list_class_options"]

KINDS = {"model": LightningModule, "data": LightningDataModule}


def explain_stray(option: str, known: Iterable[str]) -> ConfigError:
    """The error of an option that does not exist.

    Args:
        option: as it was typed.
        known: the options that exist, with their dashes.
    """
    name = option.split("=")[0]
    near = _find_meant(name.lstrip("-"), [*known, *OPTIONS])
    meant = f"did you mean {' or '.join(near)}?" if near else "see --help for those that do"
    return ConfigError(f"option {name} does not exist; {meant}")


def explain_word(word: str, known: Sequence[str]) -> ConfigError:
    """The error of a word that is no option's value.

    Args:
        word: as it was typed.
        known: the options that exist, with their dashes.
    """
    if "--config" in known and word.removesuffix(".yaml") in shipped_configs():
        return ConfigError(f"{word!r} belongs to no option; write --config {word}")
    return ConfigError(f"{word!r} belongs to no option; write options as --name value")


def list_class_options() -> dict[str, list[str]]:
    """The arguments of all our algorithms and data sets, below the options that take these classes."""
    options: dict[str, list[str]] = {}
    for key, base in KINDS.items():
        names = [name for kind in find_ours([base]) for name in inspect.signature(kind).parameters]
        options[key] = list(dict.fromkeys(names))
    return options


def _find_meant(plain: str, known: Sequence[str]) -> list[str]:
    if "." in plain and (near := find_nearest(f"--{plain}", known, 1)):
        return near
    leaf = plain.replace("-", "_")
    leaves = {option.rpartition(".")[2].removeprefix("--"): option for option in reversed(known)}
    if leaf in leaves:
        return [leaves[leaf]]
    near = find_nearest(f"--{leaf}", [option for option in known if "." not in option], 1)
    if "--model" in known:
        near += [f"--{key}.{leaf}" for key, names in list_class_options().items() if leaf in names]
    return near or [leaves[name] for name in find_nearest(leaf, list(leaves), 2)] or find_nearest(f"--{leaf}", known)
