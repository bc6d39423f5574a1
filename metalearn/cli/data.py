"""``python -m metalearn data {prepare,info,verify,tasks}``: pack a data set, show it, check it, write its tasks to a file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import yaml

from metalearn.cli.arguments import option
from metalearn.cli.config_files import read_config
from metalearn.cli.data_facts import describe_splits, list_facts, tabulate_splits
from metalearn.cli.parser import Parser, instantiate
from metalearn.cli.shipped import config_path
from metalearn.datamodules import ClassEpisodes, EpisodicDataModule, ImageEpisodes
from metalearn.datamodules.episodes.task_table import HEADER, list_task_lines
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.errors import ConfigError
from metalearn.progress import follow
from metalearn.reports.contact_sheet import draw_contact_sheet
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Summary
from metalearn.reports.tables import write_csv

__all__ = ["run"]

ACTIONS = ("prepare", "info", "verify", "tasks")
MOST_TASKS = 1_000_000


def run(args: Sequence[str]) -> Summary:
    """Run one action on the data set that ``--data CLASS`` or ``--config NAME`` says.

    Raises:
        MetalearnError: an argument or the data is wrong.
    """
    parser = _make_parser()
    config = parser.parse_args(_with_data_of_config(list(args) or ["--help"]))
    data = instantiate(parser, config).data
    if not isinstance(data, EpisodicDataModule):
        raise ConfigError(
            f"data is a {type(data).__name__}, but this command needs an episodic data module of metalearn; use --data"
        )
    begun = time.perf_counter()
    if config.action == "info" and isinstance(data, ClassEpisodes):
        data.open_anyhow()
    if config.action in ("prepare", "verify"):
        data.prepare_data()
    data.setup("test")
    facts = list_facts(data)
    if config.action == "prepare":
        seconds = time.perf_counter() - begun
        facts.append(Fact("time", f"{seconds:.1f} s", {"seconds": seconds}))
    if config.action == "verify":
        facts.append(Fact("verified", _verify(data), {"verified": isinstance(data, ImageEpisodes)}))
    if config.action == "info" and isinstance(data, ImageEpisodes):
        path = str(_draw(data, Path(config.output or f"{_title(data)}.png")))
        facts.append(Fact("contact sheet", path, {"pictures": [path]}))
    if config.action == "tasks":
        table = str(_write_tasks(data, config.output, config.split, config.count))
        facts.append(Fact("table of tasks", table, {"table": table}))
    name = type(data).__name__
    splits = describe_splits(data) if isinstance(data, ClassEpisodes) else {}
    return Summary(
        f"data {config.action}: {name}",
        facts,
        data={"command": f"data {config.action}", "data": name, **({"splits": splits} if splits else {})},
        tables=[tabulate_splits(splits)] if splits else [],
    )


def _make_parser() -> Parser:
    parser = Parser(
        prog="metalearn data",
        description="Pack a data set, show what it holds, check it, or write its tasks to a file.",
    )
    parser.add_argument("action", choices=ACTIONS, help="; ".join((
        "prepare: pack the images", "info: show the classes, with a picture of them", "verify: read everything and compare its "
        "checksum", "tasks: write a table of tasks")))  # fmt: skip
    parser.add_argument("--config", type=str, default=None, help="take the data of this shipped config or file")
    parser.add_subclass_arguments(
        L.LightningDataModule,
        "data",
        as_group=False,
        required=True,
        help="the data set: --data CLASS, and its options as --data.NAME VALUE",
    )
    parser.add_argument("--output", type=str, default=None, help="the picture (info) or the table (tasks) to write")
    parser.add_argument("--split", type=str, default="test", help="tasks: train, val or test")
    parser.add_argument(
        "--count", type=int, default=None, help="tasks: how many; default: as many as the data module has"
    )
    return parser


def _with_data_of_config(args: list[str]) -> list[str]:
    """The arguments with the ``data`` section of ``--config`` before all others, which then change it."""
    name = option(args, "--config")
    if name is None or not args:
        return args
    if sum(arg.split("=")[0] == "--config" for arg in args) > 1:
        raise ConfigError("--config is given twice, but the data set is taken from one config; keep one")
    data = read_config(config_path(name)).get("data")
    data = {"class_path": data} if isinstance(data, str) else data
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        raise ConfigError(f"config {name} has no data section with a class_path; name the data set with --data CLASS")
    arguments = data.get("init_args") or {}
    left = set(data) - {"class_path", "init_args"}
    if left or not isinstance(arguments, dict):
        raise ConfigError(
            f"config {name} has {', '.join(sorted(left)) or 'a list as init_args'} in its data section, but it holds class_path "
            "and init_args, which is a mapping; correct it"
        )
    flat = [f"--data={data['class_path']}"]
    flat += [f"--data.{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix('...' + chr(10)).strip()}"
             for key, value in arguments.items()]  # fmt: skip
    return [args[0], *flat, *args[1:]] if args[0] in ACTIONS else [*flat, *args]


def _verify(data: EpisodicDataModule) -> str:
    if not isinstance(data, ImageEpisodes):
        return "nothing is packed"
    data.store.verify()
    return f"{data.store.images.nbytes / 1e6:,.1f} MB match their checksum, and the source is the one that was packed"


def _draw(data: ImageEpisodes, path: Path) -> Path:
    rows = []
    for split in SPLITS:
        classes = data.splits[split]
        if not len(classes):
            continue
        chosen = classes[np.unique(np.linspace(0, len(classes) - 1, 8).astype(int))]
        for number in chosen:
            first, count = int(data.pool.offsets[number]), int(data.pool.counts[number])
            places = first + np.unique(np.linspace(0, count - 1, 12).astype(int))
            rows.append((split, data.pool.names[number], data.take_pixels(places)))
    return draw_contact_sheet(path, rows, f"{_title(data)}: 8 classes of each split")


def _write_tasks(data: EpisodicDataModule, output: str | None, split: str, count: int | None) -> Path:
    if not isinstance(data, ClassEpisodes):
        raise ConfigError(
            f"data is a {type(data).__name__}, but a table of tasks names examples of classes; use data with classes"
        )
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}, but it must be one of {', '.join(SPLITS)}; use --split test")
    count = data.tasks[split] if count is None else count
    if not 1 <= count <= MOST_TASKS:
        bound = "a table needs at least one task" if count < 1 else f"a table holds at most {MOST_TASKS:,} tasks"
        raise ConfigError(f"count is {count}, but {bound}; use --count 600")
    lines: Iterable[Sequence[Any]] = follow(list(list_task_lines(data, split, count)), "writing")
    return write_csv(Path(output or f"{_title(data)}_{split}_tasks.csv"), HEADER, lines)


def _title(data: EpisodicDataModule) -> str:
    return type(data).__name__.removesuffix("DataModule").lower()
