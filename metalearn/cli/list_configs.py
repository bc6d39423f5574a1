"""Lists of shipped configurations, models and data sets, read from their files without importing what they name."""

from __future__ import annotations

from typing import Any

from metalearn.cli.config_files import read_config
from metalearn.cli.shipped import DEFAULT_CONFIG, shipped_configs
from metalearn.cli.source_classes import SourceClass, find_classes
from metalearn.reports.listing import Listing

__all__ = ["list_configs", "list_datasets", "list_models"]

DATA, MODELS = "metalearn.datamodules", "metalearn.modules"
FILES = {
    "none": "none: the data come with the package, or are made",
    "yours": "yours: give their folder as --data.root DIR",
    "fetch": "fetch: those that are missing in --data.root DIR are downloaded to it",
    "images": "images: give a data set of images as --data.images CLASS, and its folder as --data.images.root DIR",
    "python": "python: none; the data are arguments, given in Python",
}
"""Which files data need, and what that means."""
GIVEN_IN_PYTHON = ("x", "function", "encoder", "sequences")
"""Arguments of a data module that hold the data, or make them."""


def list_configs() -> Listing:
    """The shipped configurations."""
    files = {kind.name: find_files(kind) for kind in find_classes(DATA)}
    rows = [_describe(name, read_config(path), files) for name, path in shipped_configs().items()]
    columns = {"name": "config", "algorithm": "algorithm", "data": "data", "task": "task", "files": "files"}
    note = "task: ways x shots, or shots alone\n" + _explain({row["files"] for row in rows})
    return Listing("configs", columns, rows, ["algorithm"], note)


def list_models() -> Listing:
    """The algorithms, and the configurations that use each."""
    users = _find_users("model")
    rows = [
        {
            "name": kind.name,
            "text": kind.text,
            "configs": users.get(kind.name, []),
            "config": _choose(users.get(kind.name, []), kind.name),
        }
        for kind in find_classes(MODELS)
    ]
    columns = {"name": "model", "text": "what it does", "config": "a config that uses it"}
    return Listing(
        "models", columns, rows, ["text"], "metalearn fit --model.help NAME shows the arguments of one of them."
    )


def list_datasets() -> Listing:
    """The data sets, and what each needs."""
    users = _find_users("data")
    rows = [
        {"name": kind.name, "text": kind.text, "files": find_files(kind), "configs": users.get(kind.name, [])}
        for kind in find_classes(DATA)
        if kind.name.endswith(("DataModule", "Episodes"))
    ]
    columns = {"name": "data set", "text": "what it reads", "files": "files"}
    return Listing("datasets", columns, rows, ["text"], _explain({str(row["files"]) for row in rows}))


def find_files(kind: SourceClass) -> str:
    """Which files a data module needs, one of :data:`FILES`, as its constructor's arguments say."""
    if "download" in kind.arguments:
        return "fetch"
    if "root" in kind.arguments:
        return "yours"
    if "images" in kind.arguments:
        return "images"
    return "python" if set(GIVEN_IN_PYTHON) & set(kind.arguments) else "none"


def _describe(name: str, config: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    model, data = _read(config, "model"), _read(config, "data")
    ways, shots = data["init_args"].get("ways"), data["init_args"].get("shots")
    first_order = bool(model["init_args"].get("first_order", False))
    return {
        "name": name,
        "model": model["class_path"],
        "algorithm": model["class_path"] + (" 1st order" if first_order else ""),
        "first_order": first_order,
        "data_class": data["class_path"],
        "data": data["class_path"].removesuffix("DataModule"),
        "ways": ways,
        "shots": shots,
        "task": f"{ways} x {shots}" if ways else str(shots or "one"),
        "files": files.get(data["class_path"], "yours"),
        "steps": config.get("trainer", {}).get("max_steps"),
    }


def _read(config: dict[str, Any], section: str) -> dict[str, Any]:
    """The class of a section without its package, and its arguments."""
    part = config.get(section) or {}
    return {"class_path": str(part.get("class_path", "")).rpartition(".")[2], "init_args": part.get("init_args") or {}}


def _find_users(section: str) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for name, path in shipped_configs().items():
        users.setdefault(_read(read_config(path), section)["class_path"], []).append(name)
    return users


def _choose(names: list[str], model: str) -> str | None:
    """The default configuration, else a short one that is called like the model."""
    order = sorted(
        names, key=lambda name: (name != DEFAULT_CONFIG, not name.startswith(f"{model.lower()}_"), len(name))
    )
    return order[0] if order else None


def _explain(shown: set[str]) -> str:
    return "\n".join(text for name, text in FILES.items() if name in shown)
