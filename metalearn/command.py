"""From what a user types to what LightningCLI parses: shipped configs by name, the default run, a checkpoint's own config."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import CheckpointError, ConfigError
from metalearn.modules.checkpoint import KEY, TRUSTED, read_checkpoint

__all__ = ["DEFAULT_CONFIG", "config_path", "option", "prepare_arguments", "shipped_configs"]

DEFAULT_CONFIG = "maml_glyphs_5w1s"
SUBCOMMANDS = ("fit", "validate", "test", "predict")


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
    if path.is_file():
        return path
    known = shipped_configs()
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
    raise ConfigError(f"config {name!r} is neither a file nor a shipped config; did you mean {', '.join(near)}?")


def option(args: Sequence[str], name: str) -> str | None:
    """The value of ``--name VALUE`` or ``--name=VALUE``; the last one counts."""
    found = None
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            found = args[index + 1]
        elif arg.startswith(name + "="):
            found = arg.split("=", 1)[1]
    return found


def prepare_arguments(args: Sequence[str], scratch: Path) -> tuple[list[str], str]:
    """Resolve config names, and supply the config that is left unsaid.

    ``fit`` without a config or a model runs :data:`DEFAULT_CONFIG`; the other subcommands take the config that the
    checkpoint carries.

    Args:
        args: what follows ``python -m metalearn``.
        scratch: a folder for a config that is read out of a checkpoint.

    Returns:
        the arguments for LightningCLI, and the name of the run.
    """
    resolved: list[str] = []
    name = "custom"
    following = False
    for arg in args:
        is_config = arg.startswith("--config=") or following
        if is_config:
            path = config_path(arg.removeprefix("--config="))
            name = path.stem
            arg = arg.replace(arg.removeprefix("--config="), str(path))
        following = arg in ("--config", "-c")
        resolved.append(arg)
    command = next((arg for arg in resolved if arg in SUBCOMMANDS), None)
    asks_help = any(arg in ("-h", "--help") or arg.startswith("--print_config") for arg in resolved)
    says_what = any(arg.split("=")[0] in ("--config", "-c", "--model", "--data") for arg in resolved)
    if command is None or says_what or (asks_help and command != "fit"):
        return resolved, name
    where = resolved.index(command) + 1
    if command == "fit":
        return [*resolved[:where], "--config", str(config_path(DEFAULT_CONFIG)), *resolved[where:]], DEFAULT_CONFIG
    checkpoint = option(resolved, "--ckpt_path")
    if checkpoint is None:
        raise ConfigError(
            f"{command} has neither --ckpt_path nor --config, but it needs a model; "
            f"use: python -m metalearn {command} --ckpt_path RUN/checkpoints/best.ckpt"
        )
    config, name = _carried_config(checkpoint)
    path = scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return [*resolved[:where], "--config", str(path), *resolved[where:]], name


def _carried_config(checkpoint: str) -> tuple[dict[str, Any], str]:
    ours = read_checkpoint(checkpoint).get(KEY, {})
    config = yaml.safe_load(ours["config"]) if isinstance(ours.get("config"), str) else None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"checkpoint {checkpoint} carries no run configuration (it was made in Python); "
            "add --config FILE, or use load_from_checkpoint"
        )
    options = (config.get("data") or {}).get("init_args", {}).get("options")
    if isinstance(options, dict):
        options.pop("augment", None)  # evaluation does not augment, and the transforms may be classes of anyone's
    for path in _class_paths(config):
        if "." in path and not path.startswith((*TRUSTED, "torch.optim.", "torch.nn.")):
            raise CheckpointError(
                f"checkpoint {checkpoint} names the class {path}, which is not built from a file unasked; "
                "add --config with the run's config.yaml"
            )
    return config, str(ours.get("run", "custom"))


def _class_paths(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["class_path"])] if "class_path" in node else []
        return own + [path for value in node.values() for path in _class_paths(value)]
    return [path for value in node for path in _class_paths(value)] if isinstance(node, list) else []
