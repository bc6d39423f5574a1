"""What our modules write into a checkpoint beside its weights, read back as what it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.carried.classes import short
from metalearn.carried.names import USE_ANOTHER, check_name
from metalearn.carried.values import check_value
from metalearn.errors import CheckpointError

__all__ = ["KEY", "Entry", "check_sizes", "count_elements", "read_entry"]

KEY = "metalearn"
"""The checkpoint entry that holds our own description: plain types only."""

IMAGE_SPEC: dict[str, Any] = {
    "channels": int, "size": int, "invert": bool, "mean": tuple[float, ...], "std": tuple[float, ...],
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Our entry of a checkpoint; all is absent from a checkpoint of others.

    Attributes:
        class_path: of the module, as it was written: not looked up.
        backbone: the network's description, not checked: see :func:`~metalearn.carried.networks.check_network`.
        image_spec: how images are read.
        image_statistics: a mean and a deviation over training images for each of a few measures; absent from older ones.
        config: the YAML text of ``model`` and ``data``, not checked: see :func:`~metalearn.carried.config.carried_config`.
        run: the run's name.
        rng: the state of torch's CPU generator.
        oracles: calls of a bilevel module by kind.
        bilevel: the state of a bilevel module, its oracle calls and ranks.
    """

    class_path: str = ""
    backbone: dict[str, Any] | None = None
    image_spec: dict[str, Any] | None = None
    image_statistics: dict[str, list[float]] | None = None
    config: str | None = None
    run: str = "custom"
    rng: Tensor | None = None
    oracles: dict[str, int] | None = None
    bilevel: dict[str, Any] | None = None


def read_entry(checkpoint: Mapping[str, Any], path: str | Path | None = None) -> Entry:
    """Our entry of a checkpoint.

    Args:
        checkpoint: what :func:`~metalearn.carried.files.read_checkpoint` gave.
        path: how messages call it.

    Raises:
        CheckpointError: a part of it is of another type, or out of bounds.
    """
    here = "the checkpoint's" if path is None else f"checkpoint {path}: its"
    raw = checkpoint.get(KEY, {})
    if not isinstance(raw, dict):
        raise _wrong(f"{here} entry {KEY!r}", raw)
    values = {name: raw.get(name) for name in Entry.__dataclass_fields__}
    for name, kind in (
        ("class_path", str), ("backbone", dict), ("image_spec", dict), ("config", str), ("rng", Tensor), ("oracles", dict),
        ("bilevel", dict),
    ):  # fmt: skip
        if values[name] is not None and not isinstance(values[name], kind):
            raise _wrong(f"{here} {name}", values[name])
    run = raw.get("run", "custom")
    check_name(run, f"{here} run")
    if values["rng"] is not None:
        _check_rng(values["rng"], f"{here} rng")
    if values["image_spec"] is not None:
        values["image_spec"] = _image_spec(values["image_spec"], f"{here} image_spec")
    if values["image_statistics"] is not None:
        _check_statistics(values["image_statistics"], f"{here} image_statistics")
    for name, counts in (("oracles", values["oracles"]), ("bilevel.counts", (values["bilevel"] or {}).get("counts"))):
        if counts is not None or (name == "bilevel.counts" and values["bilevel"] is not None):
            _check_counts(counts, f"{here} {name}")
    return Entry(**{**values, "run": run, "class_path": values["class_path"] or ""})


def count_elements(checkpoint: Mapping[str, Any]) -> int:
    """The numbers in a checkpoint's weights and in the state of its inner problem: no module that it describes has more."""
    bilevel = read_entry(checkpoint).bilevel or {}
    state = bilevel.get("state")
    values = [*checkpoint["state_dict"].values(), *(state.values() if isinstance(state, dict) else [])]
    flat = [leaf for value in values for leaf in (value if isinstance(value, list) else [value])]
    return sum(leaf.numel() for leaf in flat if isinstance(leaf, Tensor))


def check_sizes(sizes: Mapping[str, Any], elements: int, where: str) -> None:
    """Raise unless a linear bilevel problem of so many examples, features and classes is as large as its checkpoint."""
    examples, features, classes = (sizes.get(name, 1) for name in ("examples", "features", "classes"))
    if any(type(size) is not int or size < 1 for size in (examples, features, classes)):
        raise _wrong(where, dict(sizes))
    if max(examples, features * classes) > elements:
        raise CheckpointError(
            f"{where} is {short(dict(sizes))}, but there are {elements:,} numbers in the file; use a checkpoint as a run wrote it"
        )


def _check_rng(state: Tensor, where: str) -> None:
    own = torch.get_rng_state()
    if state.dtype != own.dtype or state.shape != own.shape:
        raise _wrong(where, list(state.shape))
    try:
        torch.Generator().set_state(state)
    except RuntimeError as error:
        raise _wrong(where, f"no state of a generator: {str(error).splitlines()[0][:60]}") from error


def _image_spec(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    unknown = [name for name in spec if name not in IMAGE_SPEC]
    if unknown:
        raise _wrong(where, spec)
    taken = {name: check_value(value, IMAGE_SPEC[name], name, f"{where}.{name}") for name, value in spec.items()}
    channels = taken.get("channels", 3)
    for name in ("mean", "std"):
        if len(taken.get(name, [0.0])) not in (1, channels):
            raise _wrong(f"{where}.{name}", taken[name])
    if channels not in (1, 3) or taken.get("size", 84) < 1 or any(value <= 0 for value in taken.get("std", [])):
        raise _wrong(where, taken)
    return taken


def _check_statistics(statistics: Any, where: str) -> None:
    for pair in statistics.values() if isinstance(statistics, dict) else [None]:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(type(value) is float and math.isfinite(value) for value in pair)
        ):
            raise _wrong(where, statistics)


def _check_counts(counts: Any, where: str) -> None:
    names = {"gc_f", "gc_g", "jvp", "hvp"}
    whole = isinstance(counts, dict) and all(type(count) is int and 0 <= count < 1 << 62 for count in counts.values())
    if not whole or not counts.keys() <= names:
        raise _wrong(where, counts)


def _wrong(where: str, value: object) -> CheckpointError:
    return CheckpointError(f"{where} is {short(value)}, which no run writes; {USE_ANOTHER}")
