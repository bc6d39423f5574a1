"""``load_from_checkpoint`` of every module: built from checked arguments, where Lightning would call what a file names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml

from metalearn.carried import check_arguments, count_elements, read_entry
from metalearn.carried.files import read_file
from metalearn.carried.names import ADD_CONFIG
from metalearn.errors import CheckpointError, ConfigError
from metalearn.modules.training.checkpoint import build_backbone

__all__ = ["load_module"]


def load_module(
    kind: type[L.LightningModule],
    path: str | Path,
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    weights_only: bool | None = True,
    overrides: dict[str, Any] | None = None,
) -> Any:
    """Build the module that a checkpoint holds.

    Args:
        kind: its class.
        path: a local file, or the name of a shipped checkpoint.
        map_location: the device, or a mapping of devices, as in ``torch.load``; ``None`` for the one it was saved from, where
            there is such a one.
        hparams_file: a YAML or CSV file of arguments instead of the checkpoint's.
        strict: as in ``load_state_dict``.
        weights_only: nothing but plain types is ever loaded; ``False`` is refused.
        overrides: arguments that take the place of the checkpoint's.

    Raises:
        CheckpointError: the file cannot be read, names what is not built from a file, or is of another architecture.
    """
    if weights_only is False:
        raise ConfigError("weights_only is False, but pickled code is never executed; leave it out")
    overrides = dict(overrides or {})
    contents, devices = read_file(path)
    entry = read_entry(contents, path)
    names = inspect.signature(kind.__init__).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in names.values())
    if hparams_file is None:
        held = {
            name: value for name, value in contents.get("hyper_parameters", {}).items() if name in names or takes_all
        }
        held = {name: value for name, value in held.items() if name not in overrides and not str(name).startswith("_")}
        arguments = {}
        for name, value in held.items():
            arguments.update(_check_argument(kind, name, value, path))
    else:
        read = load_hparams_from_tags_csv if Path(hparams_file).suffix == ".csv" else load_hparams_from_yaml
        arguments = {name: value for name, value in read(hparams_file).items() if name in names or takes_all}
    if "backbone" in names and "backbone" not in overrides:
        arguments["backbone"] = build_backbone(entry.backbone, count_elements(contents), path)
    try:
        module = kind(**{**arguments, **overrides})
    except TypeError as error:
        raise CheckpointError(
            f"checkpoint {path} does not say all that {kind.__name__} is built from ({error}); pass it: "
            "load_from_checkpoint(path, NAME=...)"
        ) from error
    module.configure_model()
    module.on_load_checkpoint(contents)
    module.load_state_dict(contents["state_dict"], strict=module.strict_loading if strict is None else strict)
    return module.to(_device(map_location, devices))


def _check_argument(kind: type[Any], name: str, value: Any, path: str | Path) -> dict[str, Any]:
    """An argument that a checkpoint holds, by its name.

    Raises:
        CheckpointError: it is of a class of the user's own, who can pass it, or wrong.
    """
    try:
        return check_arguments(kind, {name: value}, f"checkpoint {path}: its hyper_parameters", strict=False)
    except CheckpointError as error:
        line, _, remedy = str(error).rpartition("; ")
        if remedy != ADD_CONFIG:
            raise
        raise CheckpointError(f"{line}; pass it: load_from_checkpoint(path, {name}=...)") from error


def _device(map_location: Any, devices: set[str]) -> torch.device:
    """Where the module goes."""
    saved = next((device for device in sorted(devices) if device != "cpu"), "cpu")
    if map_location is None:
        there = (
            saved.startswith("cuda:") and int(saved[5:]) < torch.cuda.device_count() if saved[5:].isdigit() else False
        )
        return torch.device(saved if there else "cpu")
    if isinstance(map_location, dict):
        return torch.device(map_location.get(saved, "cpu"))
    if callable(map_location):
        placed = map_location(torch.UntypedStorage(0), saved)
        return torch.device("cpu") if placed is None else placed.device
    return torch.device(map_location)
