"""What is wrong with an option, as one sentence: jsonargparse's account of every type that a value could have had, condensed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from metalearn.checks import find_nearest
from metalearn.cli.stray_options import explain_stray, explain_word
from metalearn.cli.type_words import describe_type, find_classes, find_ours, list_names
from metalearn.errors import ConfigError
from metalearn.reports.text import join_lines

__all__ = ["OptionError", "explain"]


OURS = re.compile(
    r"(?:^|- )([\w.]+) (is (?:missing|no option here)[;,] .+?|is .+?, but it must be .+?)(?= - |$| Given value)"
)
"""A sentence of this module's among those of jsonargparse."""


class OptionError(ConfigError):
    """One option is wrong.

    Attributes:
        where: the option, as ``model.backbone.hidden``; grows as the error passes from a class's parser to the one around it.
        reason: what is wrong with it.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} {reason}")
        self.where, self.reason = where, reason


def explain(parser: argparse.ArgumentParser, message: str, cause: BaseException | None = None) -> ConfigError:
    """The error that the message of a parser stands for.

    jsonargparse builds each class by a parser of its own, whose error is a cause of the outer parser's: what it says is known
    already, and only gets its full name here. Beside that, jsonargparse raises ``TypeError`` and ``ValueError`` with text alone:
    the key, the value and the reason are read out of it.

    Args:
        parser: that met the error.
        message: its text.
        cause: the exception behind it.
    """
    text = join_lines(message)
    inner = _find_option_error(cause)
    if inner is not None:
        key = re.match(r'Parser key "([^"]+)"', text)
        return OptionError(_shorten(f"{key[1]}.{inner.where}" if key else inner.where), inner.reason)
    return _explain_anew(parser, text, cause)


def _find_option_error(error: BaseException | None) -> OptionError | None:
    """The first one among an exception and its causes."""
    while error is not None and not isinstance(error, OptionError):
        error = error.__cause__ or error.__context__
    return error


def _explain_anew(parser: argparse.ArgumentParser, text: str, cause: BaseException | None) -> ConfigError:
    computed = re.search(r"Call to compute_fn of link .* failed: (.+)$", text)
    if computed:
        return ConfigError(computed[1])
    unknown = re.search(r"(?:[Oo]ption|[Kk]ey) ['\"]([^'\"]+)['\"] is not (?:accepted|expected)", text) or re.search(
        r"does not accept (?:option|nested key) '([^']+)'", text
    )
    if unknown:
        return _unknown_key(parser, _shorten(unknown[1]), re.search(r"ubcommand '?(\w+)'?", text))
    stray = re.search(r"unrecognized arguments: (.+)$", text)
    if stray:
        return _explain_unrecognized(parser, stray[1].split(" "))
    asked = re.match(r"(--\S+)\.help: (.+)$", text)
    if asked:
        bare = re.search(r"path string: ([\w.]+)$", asked[2])
        if bare:
            return _explain_help(parser, asked[1], bare[1])
        return ConfigError(
            f"{asked[1]}.help cannot show that: {asked[2].rstrip('.')}; {asked[1]}.help alone lists ours"
        )
    if isinstance(cause, argparse.ArgumentError) and cause.argument_name:
        return _explain_argument(cause.argument_name.split("/")[-1], cause.message)
    missing = re.search(r"the following arguments are required: (.+)$", text)
    if missing:
        return _missing(parser, missing[1].split(", "))
    key = re.match(r'Parser key "([^"]+)":? ?(.*)$', text)
    return _wrong_value(parser, key[1], key[2]) if key else ConfigError(text)


def _explain_argument(name: str, message: str) -> ConfigError:
    """What argparse finds wrong with an argument before any type is looked at."""
    choice = re.search(r"invalid choice: '?([^']*?)'? \(choose from (.+)\)", message)
    if choice:
        known = re.findall(r"\w+", choice[2])
        return ConfigError(
            f"{name} is {choice[1]!r}, but it must be one of {', '.join(known)}{_mean(choice[1], known)}"
        )
    if re.match(r"expected (?:one|\d+|at least one) argument", message):
        return ConfigError(f"{name} has no value; write {name}=VALUE")
    return ConfigError(f"argument {name}: {message}")


def _unknown_key(parser: argparse.ArgumentParser, name: str, command: re.Match[str] | None) -> ConfigError:
    known = [option.removeprefix("--") for option in _options(parser, command[1] if command else None)]
    near = find_nearest(name, known, 2) or find_nearest(name.rpartition(".")[2], [*known, "help"], 2)
    if near:
        return OptionError(name, f"is no option here; did you mean {' or '.join(near)}?")
    if 0 < len(known) <= 12:
        return OptionError(name, f"is no option here; there are {', '.join(known)}")
    return OptionError(name, "is no option here; --model.help CLASS, --data.help CLASS and --help list what there is")


def _explain_unrecognized(parser: argparse.ArgumentParser, words: Sequence[str]) -> ConfigError:
    known = _options(parser, None)
    option = next((word for word in words if word.startswith("-")), "")
    return explain_stray(option, known) if option else explain_word(words[0], known)


def _explain_help(parser: argparse.ArgumentParser, option: str, value: str) -> ConfigError:
    """What is wrong with the class whose help is asked for."""
    action = next((action for action in parser._actions if f"--{action.dest}" == option), None)
    names = _names(getattr(action, "_typehint", None)) if action else [kind.__name__ for kind in find_ours([object])]
    near = find_nearest(value.rpartition(".")[2], names, 1)
    remedy = f"did you mean {near[0]}?" if near else f"{option}.help alone lists ours" if action else "name a class"
    return ConfigError(f"{option}.help is {_shown(value)}, but there is no such class; {remedy}")


def _missing(parser: argparse.ArgumentParser, names: Sequence[str]) -> ConfigError:
    commands = _commands(parser)
    plain = [name.partition(".")[2] if name.partition(".")[0] in commands else name for name in names]
    if plain[0] in ("subcommand", "action"):
        return ConfigError(f"no {plain[0]} is given; begin with one of {', '.join(commands) or 'those of --help'}")
    others = f", and so {'is' if len(plain) == 2 else 'are'} {', '.join(plain[1:])}" if len(plain) > 1 else ""
    dest = next((action for action in parser._actions if action.dest in (plain[0], names[0])), None)
    if dest is None and names[0] != plain[0]:
        below = commands[names[0].partition(".")[0]]
        dest = next((action for action in below._actions if action.dest == plain[0]), None)
    classes = _names(getattr(dest, "_typehint", None))[:6]
    such = f", such as {', '.join(classes)}" if classes else ""
    return OptionError(plain[0], f"is missing{others}; give it on the command line or in the config{such}")


def _wrong_value(parser: argparse.ArgumentParser, name: str, text: str) -> ConfigError:
    action = next((each for each in parser._actions if each.dest in (name, name.rpartition(".")[2])), None)
    where = _shorten(name)
    if "Unable to load config" in text:
        shown = re.search(r"Unable to load config ['\"](.*?)['\"]", text)
        value = shown[1] if shown else "no mapping"
        return OptionError(where, f"is {_shown(value)}, but it must be a mapping of options, or a YAML file of one")
    nested = re.search(r"NestedArg\(key='([^']+)', val='?([^')]*)", text)
    if nested and nested[1].endswith(".help"):
        return _explain_help(parser, f"--{where}.{nested[1].removesuffix('.help')}", nested[2])
    if nested and "." not in where:
        return OptionError(
            f"{where}.{_shorten(nested[1])}",
            f"stands before its class is known; put --config or --{where} in front of it",
        )
    ours = OURS.search(text.partition(" Errors: ")[2])
    if ours:  # of a class within one of several types, whose errors are text alone
        return OptionError(f"{where}.{ours[1]}", ours[2].rstrip("."))
    value = _read_value(text)
    hint = getattr(action, "_typehint", None)
    words = describe_type(hint)
    if not words or value is None:
        return OptionError(where, text)
    reason = re.search(r"Problem with given class_path '[^']+': (.+?)(?: - |$)", text)
    no_kind = re.search(r"does not correspond to a subclass of (\w+)", text)
    because = f" ({reason[1].strip()})" if reason else f" (it is no {no_kind[1]})" if no_kind else ""
    leaf = value.rpartition(".")[2] if re.fullmatch(r"[\w.]+", value) and not re.match(r"[\d.]+$", value) else ""
    if leaf in _names(hint) and not because:  # the class is right, so what is wrong is within it
        return OptionError(where, f"is {_shown(value)}, but what is given for it cannot be used: {text[:300]}")
    # a class or function of the user's that exists: what is called alike is not meant
    exists = no_kind is not None and "." in value
    remedy = _find_remedy(value, "" if exists else leaf, hint, words, getattr(action, "default", None))
    return OptionError(where, f"is {_shown(value)}{because}, but it must be {words}; {remedy}")


def _read_value(text: str) -> str | None:
    """The value that jsonargparse's text quotes, of a class its path; ``None`` where it quotes none."""
    quoted = (
        re.search(r"Given value: (?:NestedArg\(key='[^']*', val=)?(.+?)\)?$", text)
        or re.search(r"Got value: (.+?)(?: - |$)", text)
        or re.search(r"(?:Expected a path but (.+?) either not accessible|import path string: (.+)$)", text)
    )
    if re.search(r"(?:Got value|Given value): ?(?:NestedArg\(key='[^']*', val=''\))?$", text):
        return ""
    value = next((group for group in quoted.groups() if group), None) if quoted else None
    if value is None:
        return None
    class_path = re.search(r"class_path['\"]?[:=] ?'([^']+)'", value)
    return class_path[1] if class_path else value.strip("'\"")


def _find_remedy(value: str, leaf: str, hint: Any, words: str, default: object) -> str:
    """What to do about a wrong value.

    Args:
        value: that is wrong.
        leaf: the name of the class that it may mean.
        hint: the option's type.
        words: that type in words.
        default: of the option.
    """
    choices, (ours, others) = re.findall(r"'([^']+)'", words), list_names(find_classes(hint))
    classes = [*ours, *others]
    near = find_nearest(value, choices, 2) or (
        find_nearest(leaf, ours, 2) or find_nearest(leaf, others, 2) if leaf else []
    )
    if near:
        return f"did you mean {' or '.join(near)}?"
    if classes and not choices:
        return f"use one of {', '.join(classes[:8])}, or a class of yours by its full name"
    if isinstance(default, (int, float, str)):
        return f"leave it out for {default!r}"
    return "correct it, or leave it out"


def _names(hint: Any) -> list[str]:
    """The names of the classes that a type takes, ours first."""
    ours, others = list_names(find_classes(hint))
    return [*ours, *others]


def _options(parser: argparse.ArgumentParser, command: str | None) -> list[str]:
    """The long options of a parser and of its subcommands, or of one of these."""
    below = _commands(parser)
    parsers = [below[command]] if command in below else [parser, *below.values()]
    actions = [action for each in parsers for action in each._actions]
    options = [option for action in actions for option in action.option_strings if option != "--help"]
    options += [f"--{action.dest}" for action in actions if not action.option_strings]
    kept = [option for option in options if option.startswith("--") and not option.endswith((".help", "+"))]
    return list(dict.fromkeys(kept))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            return dict(action.choices)
    return {}


def _mean(word: str, known: Sequence[str]) -> str:
    near = find_nearest(word, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; use {known[0]}" if known else ""


def _shorten(name: str) -> str:
    return name.replace(".init_args", "").replace(".dict_kwargs", "")


def _shown(value: Any) -> str:
    text = str(value)
    text = text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
    return text if re.fullmatch(r"[-+\d.eE]+|[\[{(].*|True|False|None", text) else f"'{text}'"
