"""Which tensors of a network adapt: patterns of their names, and words for the usual parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from metalearn.checks import find_nearest, quote_value
from metalearn.errors import ConfigError

__all__ = [
    "HEAD_TEXT",
    "WORDS",
    "Part",
    "Patterns",
    "check_patterns",
    "choose_head",
    "find_head",
    "find_scope",
    "get_head",
    "matches",
    "spell_head",
]

WORDS = ("all", "head", "body", "norm", "bias")
"""Patterns that are no names: a network's own submodule of such a name is ``"body.*"``, say."""

Patterns = str | list[str]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
OUT = "!"

HEAD_TEXT = 'the layer that gives the outputs. ``"head"`` is the one called so, or else the last ``torch.nn.Linear``.'
"""What the help says of an argument ``head``."""


def check_patterns(name: str, value: Any) -> None:
    """Raise unless ``value`` is a text or a list of texts, none of them empty; whether they fit a network is another question."""
    patterns = [value] if isinstance(value, str) else value
    is_list = isinstance(patterns, (list, tuple)) and bool(patterns)
    if not is_list or not all(isinstance(text, str) and text.removeprefix(OUT) for text in patterns):
        raise ConfigError(
            f"{name} is {quote_value(value)}, but it must be a name, a pattern, one of {', '.join(WORDS)}, or a list of these; "
            f"use {name}='head'"
        )


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name, or the beginning of it that names a submodule, is ``pattern``, or fits it as file names do."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


@dataclass(frozen=True)
class Part:
    """The tensors of a network that some patterns mean.

    Attributes:
        patterns: of names, in their order; ``!`` begins those that take out.
        argument: how messages call them.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner.parts import Part
        >>> Part(("all", "!body")).find(MLP(outputs=5, inputs=8))
        ['head.weight', 'head.bias']
    """

    patterns: tuple[str, ...]
    argument: str = "adapts"

    @classmethod
    def of(cls, patterns: str | Sequence[str], argument: str = "adapts") -> Part:
        """The part that a text or a list of texts means."""
        check_patterns(argument, patterns)
        return cls((patterns,) if isinstance(patterns, str) else tuple(patterns), argument)

    def find(self, network: nn.Module) -> list[str]:
        """The names of the tensors, as ``named_parameters()`` has them.

        Raises:
            ConfigError: a pattern fits no tensor, or none is left.
        """
        # a tensor that two layers share is known by its first name, and meant by any of them
        first = {id(value): name for name, value in network.named_parameters()}
        names = [(name, first[id(value)]) for name, value in network.named_parameters(remove_duplicate=False)]
        left = set() if not self.patterns[0].startswith(OUT) else set(first.values())
        for pattern in self.patterns:
            fitting = self._fit(network, pattern.removeprefix(OUT))
            meant = {own for name, own in names if name in fitting}
            left = left - meant if pattern.startswith(OUT) else left | meant
        if not left:
            raise ConfigError(
                f"{self.argument} is {_quote(self.patterns)}, but that leaves no tensor of {type(network).__name__}; take "
                "fewer out"
            )
        return [name for name in first.values() if name in left]

    def _fit(self, network: nn.Module, pattern: str) -> set[str]:
        """The names that one pattern fits, without its mark."""
        names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
        if pattern in ("head", "body"):
            head = find_head(network, f"{self.argument} has {pattern!r}")
            inside = {name for name in names if not head or name.startswith(f"{head}.")}
            fitting = inside if pattern == "head" else set(names) - inside
        elif pattern == "norm":
            fitting = {f"{path}.{key}".lstrip(".") for path, layer in network.named_modules(remove_duplicate=False)
                       if _normalises(layer) for key, _ in layer.named_parameters(recurse=False)}  # fmt: skip
        elif pattern == "bias":
            fitting = {name for name in names if name.rpartition(".")[2] == "bias"}
        else:
            fitting = set(names) if pattern == "all" else {name for name in names if matches(name, pattern)}
        if not fitting:
            raise ConfigError(
                f"{self.argument} has {pattern!r}, but no tensor of {type(network).__name__} is meant by that; "
                f"{advise(pattern, names)}"
            )
        return fitting

    def names_head(self) -> bool:
        """Whether the head has to be found."""
        return bool({"head", "body"} & {pattern.removeprefix(OUT) for pattern in self.patterns})


def advise(pattern: str, names: Iterable[str]) -> str:
    """What a pattern that fits nothing may have meant, or what there is."""
    names = list(names)
    paths = dict.fromkeys(
        ".".join(name.split(".")[:length]) for name in names for length in range(1, name.count(".") + 2)
    )
    near = find_nearest(pattern, [*WORDS, *paths], 1)
    if near:
        return f"did you mean {near[0]!r}?"
    tops = dict.fromkeys(name.partition(".")[0] for name in names)
    return f"there are {', '.join([*tops][:8])}"


def find_head(network: nn.Module, asked: str = "head is 'head'") -> str:
    """The name of the layer that maps features to outputs: the submodule ``head``, or else the last ``torch.nn.Linear``.

    Args:
        network: of the user.
        asked: a clause that says which argument asks for it, for the message.

    Raises:
        ConfigError: there is neither.
    """
    head = dict(network.named_children()).get("head")
    if head is not None and any(True for _ in head.parameters()):
        return "head"
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        names = ", ".join(name for name, _ in network.named_children()) or "none"
        raise ConfigError(
            f"{asked}, but {type(network).__name__} has neither a submodule called head nor a torch.nn.Linear; "
            f"name the submodule that gives the outputs, one of {names}"
        )
    return linear[-1]


def get_head(network: nn.Module, name: str) -> nn.Module:
    """The submodule of a name that a user has given as the head's.

    Raises:
        ConfigError: there is none.
    """
    try:
        head = network.get_submodule(name) if name else None
    except AttributeError:
        head = None
    if head is None:
        names = ", ".join(name for name, _ in network.named_children()) or "none"
        raise ConfigError(
            f"head is {name!r}, but {type(network).__name__} has no submodule of that name (it has: {names}); name the layer "
            "that maps features to logits"
        )
    return head


def choose_head(network: nn.Module, head: str) -> str:
    """The name of the layer that an argument ``head`` means: as it is, but ``"head"`` is what :func:`find_head` says.

    Raises:
        ConfigError: there is no such layer, or the network is that layer.
    """
    if head != "head":
        get_head(network, head)
        return head
    name = find_head(network)
    if not name:
        raise ConfigError(
            f"head is 'head', but the network is a {type(network).__name__} itself, with no layer before it; use "
            "torch.nn.Sequential(network), whose features are the examples"
        )
    return name


def spell_head(head: str) -> str | None:
    """A clause that says which layer was taken for the head; ``None`` where it is called so."""
    return None if head == "head" else f"the head is {head!r}, the last torch.nn.Linear"


def find_scope(names: Iterable[str]) -> str:
    """The smallest submodule that holds these tensors; ``""`` for the network itself."""
    scope: list[str] | None = None
    for name in names:
        path = name.split(".")[:-1]
        if scope is None:
            scope = path
        while scope and path[: len(scope)] != scope:
            scope = scope[:-1]
    return ".".join(scope or [])


def _normalises(layer: nn.Module) -> bool:
    return isinstance(layer, NORMS) or "Norm" in type(layer).__name__


def _quote(patterns: Sequence[str]) -> str:
    return repr(patterns[0] if len(patterns) == 1 else list(patterns))
