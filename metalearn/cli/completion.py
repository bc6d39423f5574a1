"""``metalearn completion {bash,zsh}``: a script by which a shell completes commands, options, classes and configurations."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metalearn.checks import find_nearest
from metalearn.cli.commands import COMMANDS, LIGHTNING_COMMANDS, Call
from metalearn.cli.interrupts import Signals
from metalearn.cli.light_parser import LightParser
from metalearn.cli.output import OPTIONS
from metalearn.cli.shipped import shipped_configs
from metalearn.errors import ConfigError

__all__ = ["SHELLS", "make_completion_parser", "run"]

SHELLS = {
    "bash": "_metalearn_config() { compgen -W '{configs}' -- $1; compgen -f -- $1; }",
    "zsh": "_metalearn_config() { compadd -- {configs}; _files; }",
}
"""For each shell how it completes a configuration: by a name or a file."""
CONFIG = dict.fromkeys(SHELLS, "_metalearn_config")
FILES = ("config", "ckpt_path")
FOLDERS = ("support", "query", "output", "data.root", "data.cache_dir", "runs")
WHERE = """  metalearn completion bash > ~/.local/share/bash-completion/completions/metalearn
  metalearn completion zsh > ~/.zfunc/_metalearn   (a folder of your fpath)"""


def run(args: Sequence[str]) -> None:
    """Print the script for one shell.

    Raises:
        ConfigError: there is no such shell.
        ModuleNotFoundError: shtab is not installed.
    """
    parser = LightParser("completion", "Print the script that completes commands in a shell.", WHERE)
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(SHELLS))
    shell = parser.parse_args(args).shell
    if shell not in SHELLS:
        near = find_nearest(shell, list(SHELLS), 1)
        raise ConfigError(f"shell is {shell!r}, but it must be {' or '.join(SHELLS)}; use {(near or ['bash'])[0]}")
    try:
        import shtab
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "completion needs shtab, which is not installed; install it with: pip install 'metalearn-lightning[completion]'"
        ) from None
    preamble = SHELLS[shell].replace("{configs}", " ".join(shipped_configs()))
    print(shtab.complete(make_completion_parser(), shell, root_prefix="_metalearn", preamble=preamble))


def make_completion_parser() -> argparse.ArgumentParser:
    """The whole command line as one parser, for completion alone: it knows the names, and not what they mean."""
    parser = argparse.ArgumentParser(prog="metalearn")
    parser.add_argument("--version", action="store_true", help="show the versions")
    below = parser.add_subparsers()
    shared = _list_class_options()
    for name, command in COMMANDS.items():
        subparser = below.add_parser(name, help=command.text)
        options = {**dict.fromkeys([*_read_options(name), *OPTIONS])}
        if name in (*LIGHTNING_COMMANDS, "seeds", "sweep"):
            options |= shared
        options.pop("--help", None)
        for option, choices in options.items():
            _complete(subparser.add_argument(option, nargs="?", choices=choices), option)
        _add_first_word(subparser, name)
    return parser


def _complete(action: Any, option: str) -> None:
    name = option.lstrip("-")
    if name == "config":
        action.complete = CONFIG
    elif name in FILES:
        action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files"}
    elif name in FOLDERS:
        action.complete = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}


def _add_first_word(parser: argparse.ArgumentParser, name: str) -> None:
    """What may stand behind a command's name."""
    from metalearn.cli.data import ACTIONS
    from metalearn.cli.listing import KINDS
    from metalearn.cli.study import STUDIES

    words = {"data": ACTIONS, "list": KINDS, "study": STUDIES, "completion": SHELLS}
    if name in words:
        parser.add_argument("word", nargs="?", choices=list(words[name]))
    elif name in ("seeds", "sweep"):
        _complete(parser.add_argument("config", nargs="?"), "config")
    elif name in ("runs", "compare", "resume"):
        _complete(parser.add_argument("run", nargs="*"), "runs")


def _read_options(name: str) -> list[str]:
    """The options that the help of a command shows."""
    from metalearn.cli.study import STUDIES

    calls = [[name, study, "--help"] for study in STUDIES] if name == "study" else [[name, "--help"]]
    text = "\n".join(_capture_help(words) for words in calls if name != "completion")
    return list(dict.fromkeys(re.findall(r"^  (?:-\w, )?(--[\w.]+)", text, re.MULTILINE)))


def _capture_help(words: list[str]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        COMMANDS[words[0]].load()(Call(words, Signals(), lambda: None))
    return output.getvalue()


def _list_class_options() -> dict[str, list[str] | None]:
    """The options of our algorithms, data sets and networks and of Lightning's Trainer, with the choices that each has."""
    from lightning import LightningDataModule, LightningModule, Trainer
    from torch import nn

    from metalearn.cli.type_words import find_ours, import_classes

    import_classes()
    bases = {"model": LightningModule, "data": LightningDataModule, "model.backbone": nn.Module}
    options: dict[str, list[str] | None] = {}
    for key, base in bases.items():
        kinds = find_ours([base])
        options |= dict.fromkeys((f"--{key}", f"--{key}.help"), sorted(kind.__name__ for kind in kinds))
        for kind in kinds:
            new = _list_arguments(kind)
            options |= {f"--{key}.{name}": new[name] for name in new if f"--{key}.{name}" not in options}
    options |= {f"--trainer.{name}": choices for name, choices in _list_arguments(Trainer).items()}
    return options | {"--trainer.help": None}


def _list_arguments(kind: type) -> dict[str, list[str] | None]:
    """The arguments of a class, with the choices that each has."""
    parameters = inspect.signature(kind).parameters
    try:
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    except NameError:  # a hint that only type checkers import
        hints = {}
    return {name: _list_choices(hints.get(name)) for name in parameters}


def _list_choices(hint: Any) -> list[str] | None:
    parts: Iterable[Any] = (hint,) if get_origin(hint) is Literal else get_args(hint)
    choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    return ["true", "false"] if hint is bool else choices or None
