"""What an adapted model says of itself in a file."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metalearn.carried import KEY, read_entry
from metalearn.carried.classes import short
from metalearn.checks import MOST_OF_A_TASK, MOST_STEPS, quote_value
from metalearn.errors import CheckpointError, ConfigError
from metalearn.inner.learner import Learner

__all__ = ["Description", "Origin", "check_names", "choose_policy", "damaged"]

FORMAT = 1
POLICIES = ("independent", "transductive")
MOST_NORMALISATIONS = 10_000
MOST_NUMBERS = 1 << 26
"""Of an example: a quarter of a gigabyte."""
DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool", "complex64", "complex128")


@dataclass(frozen=True)
class Origin:
    """What an adapted model knows of the module that it is from.

    Attributes:
        algorithm: the class of the module.
        backbone: how its network is built, where that says it.
        preprocessing: how images are read.
        image_statistics: what training images are like, for warnings.
    """

    algorithm: str = ""
    backbone: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None
    image_statistics: dict[str, list[float]] | None = None


@dataclass(frozen=True)
class Description:
    """The facts about an adapted model, in plain types.

    Attributes:
        algorithm: the class of the module.
        network: the class of its network.
        policy: whether queries are normalised by the support set (``"independent"``), or together (``"transductive"``).
        steps: inner steps.
        ways: how many outputs are used; ``None`` for all.
        classes: whether outputs are logits of classes.
        names: of the classes.
        preprocessing: how images are read.
        meta_model: the checksum of the network's tensors before adaptation.
        shape: of an example.
        dtype: of an example.
        normalisations: the names of those whose statistics are in the file.
        backbone: how the network is built, of a file that holds it whole; else ``None``.
        image_statistics: what training images are like.
        examples: how many examples it was adapted to; ``None`` in older files.
    """

    algorithm: str
    network: str
    policy: str
    steps: int
    ways: int | None
    classes: bool
    names: list[str] | None
    preprocessing: dict[str, Any] | None
    meta_model: str
    shape: list[int]
    dtype: str
    normalisations: list[str]
    backbone: dict[str, Any] | None = None
    image_statistics: dict[str, list[float]] | None = None
    examples: int | None = None

    def origin(self) -> Origin:
        """What it says of the module."""
        return Origin(self.algorithm, self.backbone, self.preprocessing, self.image_statistics)

    def to_json(self) -> str:
        """As one line of text, with the versions that wrote it."""
        versions = {"metalearn-lightning": version("metalearn-lightning"), "torch": str(torch.__version__)}
        return json.dumps({"format": FORMAT, "versions": versions, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> Description:
        """The inverse of :meth:`to_json`.

        Raises:
            CheckpointError: it is anything else.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(path, "its description is no JSON") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise damaged(path, f"its format is {short(raw.get('format') if isinstance(raw, dict) else raw)}")
        missing = [field.name for field in fields(cls) if field.name not in raw and field.default is MISSING]
        if missing:
            raise damaged(path, f"its description lacks {missing[0]}")
        values = {field.name: raw.get(field.name, field.default) for field in fields(cls)}
        for name, is_right in _CHECKS.items():
            if not is_right(values[name]):
                raise damaged(path, f"its {name} is {short(values[name])}")
        images = {"image_spec": values["preprocessing"], "image_statistics": values["image_statistics"]}
        entry = read_entry({KEY: images}, path)
        return cls(**{**values, "preprocessing": entry.image_spec, "image_statistics": entry.image_statistics})


def check_names(names: Any) -> None:
    """Raise unless the names of classes are a list of texts, or ``None``.

    Raises:
        ConfigError: they are anything else.
    """
    if names is not None and not _are_names(names):
        raise ConfigError(
            f"names is {quote_value(names)}, but it must be a list of texts of one line; use names=['cat', 'dog'], or None"
        )


def choose_policy(learner: Learner, independent: bool) -> str:
    """What a file of an adapted model says of how queries are judged.

    Raises:
        ConfigError: together, by way of the support set, which a file does not hold.
    """
    if independent or learner.norm != "transductive":
        return "independent"
    if learner.by_support is not None:
        raise ConfigError(
            f"independent is False, but a query {learner.by_support}, which takes the support set too, and a file holds none; "
            "use save(path), whose answers are those of independent()"
        )
    return learner.norm


def damaged(path: str | Path, what: str) -> CheckpointError:
    """What to say of a file that :meth:`AdaptedModel.save` did not write so."""
    return CheckpointError(
        f"adapted model {path} is damaged: {' '.join(what.split())}; use a file as AdaptedModel.save wrote it"
    )


def _is_text(value: Any, most: int = 200) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= most


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_OF_A_TASK and all(_is_text(name, 1000) for name in value)


def _are_sizes(value: list[Any]) -> bool:
    """Whether these are the sizes of an example that a network may be tried on."""
    return all(_is_count(size, 0, MOST_NUMBERS) for size in value) and math.prod(value) <= MOST_NUMBERS


_CHECKS = {
    "algorithm": _is_text,
    "network": _is_text,
    "policy": lambda value: value in POLICIES,
    "steps": lambda value: _is_count(value, 0, MOST_STEPS),
    "ways": lambda value: value is None or _is_count(value, 1, MOST_OF_A_TASK),
    "classes": lambda value: isinstance(value, bool),
    "names": lambda value: value is None or _are_names(value),
    "preprocessing": lambda value: value is None or isinstance(value, dict),
    "meta_model": _is_text,
    "shape": lambda value: isinstance(value, list) and len(value) < 10 and _are_sizes(value),
    "dtype": lambda value: value in DTYPES,
    "backbone": lambda value: value is None or isinstance(value, dict),
    "image_statistics": lambda value: value is None or isinstance(value, dict),
    "examples": lambda value: value is None or _is_count(value, 1, MOST_OF_A_TASK**2),
    "normalisations": lambda value: _are_names(value) and len(value) <= MOST_NORMALISATIONS,
}
"""What each part of a description must be, since a file may be anyone's."""
