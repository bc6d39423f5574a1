"""What a sweep tries: values that are listed, and ranges, as they are written after ``--set``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from metalearn.checks import quote_value
from metalearn.errors import ConfigError

__all__ = ["Choices", "Range", "Setting", "list_combinations", "read_settings"]

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")
EXAMPLE = "write for example --set model.inner_lr=0.1,0.4 or --set model.inner_lr=log:0.01..1"
MOST = 10_000
"""Combinations of listed values, at most."""


@dataclass(frozen=True)
class Choices:
    """Values of an option that are listed.

    Attributes:
        name: of the option, such as ``"model.inner_lr"``.
        texts: the values as they were written.

    Example:
        >>> from metalearn.experiments.space import Choices
        >>> str(Choices("model.inner_lr", ("0.1", "0.4")))
        '0.1,0.4'
    """

    name: str
    texts: tuple[str, ...]

    @property
    def samples(self) -> tuple[str, ...]:
        """Values to try before anything runs."""
        return self.texts

    def __str__(self) -> str:
        return ",".join(self.texts)

    def format(self, value: object) -> str:
        """A value as the command line takes it."""
        return str(value)


@dataclass(frozen=True)
class Range:
    """Numbers of an option between two ends, both included.

    Attributes:
        name: of the option.
        low: the lower end.
        high: the upper end.
        is_log: whether each factor is as likely, and not each difference.
        is_whole: whether they are whole numbers, as both ends are then written.

    Example:
        >>> from metalearn.experiments.space import Range
        >>> str(Range("model.inner_lr", 0.01, 1.0, is_log=True, is_whole=False))
        'log:0.01..1.0'
    """

    name: str
    low: float
    high: float
    is_log: bool
    is_whole: bool

    @property
    def samples(self) -> tuple[str, ...]:
        """Values to try before anything runs: both ends."""
        return self.format(self.low), self.format(self.high)

    def __str__(self) -> str:
        return f"{'log:' * self.is_log}{self.samples[0]}..{self.samples[1]}"

    def format(self, value: object) -> str:
        """A value as the command line takes it."""
        return str(int(float(str(value)))) if self.is_whole else repr(float(str(value)))


Setting = Choices | Range


def read_settings(texts: Iterable[str]) -> list[Setting]:
    """The settings of ``--set NAME=VALUES``.

    Raises:
        ConfigError: one is not written so, or an option stands in two of them.

    Example:
        >>> from metalearn.experiments.space import read_settings
        >>> read_settings(["model.inner_lr=0.1,0.4"])
        [Choices(name='model.inner_lr', texts=('0.1', '0.4'))]
    """
    settings: list[Setting] = []
    for text in texts:
        setting = _read_setting(text)
        if any(setting.name == other.name for other in settings):
            raise ConfigError(
                f"set names {setting.name} twice; write all of its values in one: --set {setting.name}=VALUE,VALUE"
            )
        settings.append(setting)
    if not settings:
        raise ConfigError(f"set is missing, but a sweep must know what it tries; {EXAMPLE}")
    return settings


def list_combinations(settings: Sequence[Setting]) -> list[dict[str, str]] | None:
    """Every combination of values, the last option changing first; ``None`` where an option has a range.

    Raises:
        ConfigError: there are too many.

    Example:
        >>> from metalearn.experiments.space import list_combinations, read_settings
        >>> list_combinations(read_settings(["a=1,2", "b=3"]))
        [{'a': '1', 'b': '3'}, {'a': '2', 'b': '3'}]
    """
    lists = [setting.texts for setting in settings if isinstance(setting, Choices)]
    if len(lists) < len(settings):
        return None
    if (count := math.prod(map(len, lists))) > MOST:
        raise ConfigError(f"set lists {count:,} combinations, but there may be at most {MOST:,}; list fewer values")
    return [dict(zip((setting.name for setting in settings), values, strict=True)) for values in product(*lists)]


def _read_setting(text: str) -> Setting:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--")
    if not equals or not name or not values.strip():
        raise ConfigError(f"set is {quote_value(text)}, but it must be OPTION=VALUES; {EXAMPLE}")
    if matched := RANGE.fullmatch(values.strip()):
        return _read_range(name, *matched.groups())
    texts = _split(values)
    for number, part in enumerate(texts):
        if not part:
            raise ConfigError(f"set {text} has an empty value; leave out the comma that has nothing beside it")
        if part in texts[:number]:
            raise ConfigError(f"set {text} lists {part} twice; leave one of them out")
    return Choices(name, tuple(texts))


def _read_range(name: str, log: str | None, first: str, last: str) -> Range:
    low, high = float(first), float(last)
    if not low < high or math.isinf(high - low):
        remedy = f"write {last}..{first}" if high < low else f"write --set {name}={first} for one value"
        raise ConfigError(f"set gives {name} the range {first}..{last}, but it must go from less to more; {remedy}")
    if log and low <= 0:
        raise ConfigError(
            f"set gives {name} the range log:{first}..{last}, but its ends must be above 0; leave log: out"
        )
    return Range(name, low, high, bool(log), all(re.fullmatch(r"[+-]?\d+", end) for end in (first, last)))


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if sign == "," and depth == 0 and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += 0 if quote else (sign in "[{(") - (sign in "]})")
        parts[-1] += sign
    return [part.strip() for part in parts]
