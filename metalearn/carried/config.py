"""The configuration that a checkpoint carries: which model and which data, in names and numbers of a closed list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metalearn.carried.classes import DATA_MODULES, MODULES, NETWORKS, short
from metalearn.carried.entry import Entry, check_sizes
from metalearn.carried.names import ADD_CONFIG, USE_ANOTHER, class_path
from metalearn.carried.networks import check_network
from metalearn.carried.values import check_arguments, check_class, leave_to_user, signature
from metalearn.errors import CheckpointError, on_one_line

__all__ = ["carried_config"]

LONGEST = 200_000
"""Characters of a configuration; that of a run has some 2,000."""
MOST_NODES = 50_000
MOST_ALIASES = 100
DEEPEST = 20
MOST_BYTES = 1 << 33
"""Of the images of one batch."""


def carried_config(entry: Entry, elements: int, path: str | Path) -> dict[str, Any]:
    """The ``model`` and the ``data`` to evaluate a checkpoint with; every class has its full name, and is one of a closed list.

    What makes optimisers, augments, writes or downloads is left out.

    Args:
        entry: what our module wrote into the checkpoint.
        elements: the numbers in the checkpoint's tensors, which bound the size of the model.
        path: how messages call it.

    Raises:
        CheckpointError: there is none, it says more than a model and data, names another class, or a number is out of bounds.
    """
    if entry.config is None:
        raise CheckpointError(
            f"checkpoint {path} carries no run configuration (it is of a module of your own, or was made in Python); "
            "add --config FILE, or use load_from_checkpoint"
        )
    here = f"checkpoint {path}: its configuration"
    config = _Tree(here).take(_parse(entry.config, here))
    if not isinstance(config, dict) or "model" not in config:
        raise CheckpointError(f"{here} has no model; {USE_ANOTHER}")
    for name in config:
        if name not in ("model", "data"):
            raise CheckpointError(
                f"{here} has {short(name)}, but only model and data are taken from a file; {ADD_CONFIG}"
            )
    taken = {}
    data: dict[str, Any] = {}
    if config.get("data") is not None:
        taken["data"] = _take_data(config["data"], f"{here}: data")
        data = taken["data"]["init_args"]
    taken["model"] = _take_model(config["model"], data, entry.backbone, elements, f"{here}: model")
    if (
        entry.backbone is not None
    ):  # not used here, but a file that names what it may not is not to be trusted with the rest
        check_network(entry.backbone, elements, f"checkpoint {path}: its backbone")
    if class_path(check_class(entry.class_path, MODULES, f"checkpoint {path}: it")[0]) != taken["model"]["class_path"]:
        raise CheckpointError(f"{here} is of another model than its weights, {short(entry.class_path)}; {USE_ANOTHER}")
    return taken


def _parse(text: str, here: str) -> Any:
    if len(text) > LONGEST:
        raise CheckpointError(f"{here} has {len(text):,} characters, more than any run's; {USE_ANOTHER}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(text, loader, here)
        return yaml.load(text, loader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:
        reason = on_one_line(error)
        raise CheckpointError(f"{here} is no YAML that is read ({reason}); {USE_ANOTHER}") from error


def _check_events(text: str, loader: Any, here: str) -> None:
    """Raise at what would grow when it is loaded: nesting, references, and merged mappings."""
    depth = aliases = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        merges = isinstance(event, yaml.ScalarEvent) and event.value == "<<"
        if depth > DEEPEST or aliases > MOST_ALIASES or merges or getattr(event, "tag", None):
            raise CheckpointError(f"{here} is nested, tagged or refers to itself as no run's is; {USE_ANOTHER}")


class _Tree:
    """Copies what YAML's references have made of a few lines, within a bound."""

    def __init__(self, here: str) -> None:
        self.here, self.left = here, MOST_NODES

    def take(self, node: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise CheckpointError(f"{self.here} is nested or repeated without end; {USE_ANOTHER}")
        if isinstance(node, dict):
            if not all(isinstance(name, str) for name in node):
                raise CheckpointError(f"{self.here} has a name that is no text; {USE_ANOTHER}")
            return {name: self.take(value, depth + 1) for name, value in node.items()}
        if isinstance(node, list):
            return [self.take(value, depth + 1) for value in node]
        return node


def _take_data(node: Any, where: str) -> dict[str, Any]:
    kind, arguments = check_class(node, DATA_MODULES, where)
    taken = leave_to_user(kind, check_arguments(kind, arguments, where))
    _check_batch(taken, where)
    return {"class_path": class_path(kind), "init_args": taken}


def _check_batch(arguments: Mapping[str, Any], where: str) -> None:
    """Raise if a batch of tasks would not fit into memory."""
    ways, shots, queries, more = (_most(arguments.get(name, 1)) for name in ("ways", "shots", "queries", "unlabeled"))
    images = arguments.get("tasks_per_batch", 1) * ways * (shots + queries + more)
    size = arguments.get("image_size", 84)
    if "images" in arguments:  # a task is the pixels of one
        images, size = arguments.get("tasks_per_batch", 1), arguments["images"]["init_args"].get("image_size", 84)
    need = images * 3 * 4 * size**2
    if need > MOST_BYTES:
        raise CheckpointError(f"{where} makes batches of {images:,} images, which no run's fits; {USE_ANOTHER}")


def _most(count: Any) -> int:
    return max(count) if isinstance(count, list) and count else count if isinstance(count, int) else 1


def _take_model(
    node: Any, data: Mapping[str, Any], described: dict[str, Any] | None, elements: int, where: str
) -> dict[str, Any]:
    kind, arguments = check_class(node, MODULES, where)
    taken = check_arguments(kind, arguments, f"{where}.init_args")
    backbone = taken.get("backbone")
    if backbone is not None:
        network, inside = check_class(backbone, NETWORKS, f"{where}.init_args.backbone")
        if described is not None and "weights" in signature(network):  # it was built from files that need not be here
            own, arguments = check_class(described, NETWORKS, f"{where}.init_args.backbone")
            inside = {**inside, **(check_arguments(own, arguments, where) if own is network else {}), "weights": None}
            taken["backbone"] = {"class_path": class_path(network), "init_args": inside}
        linked = {"ways": _most(data["ways"])} if "ways" in data and "ways" in signature(network) else {}
        check_network(
            {"class_path": class_path(network), "init_args": {**inside, **linked}},
            elements,
            f"{where}.init_args.backbone",
        )
    elif "backbone" in signature(kind):
        raise CheckpointError(f"{where} has no backbone; {USE_ANOTHER}")
    sizes = {name: taken[name] for name in ("examples", "features", "classes") if taken.get(name) is not None}
    check_sizes(sizes, elements, f"{where}.init_args")
    return {"class_path": class_path(kind), "init_args": taken}
