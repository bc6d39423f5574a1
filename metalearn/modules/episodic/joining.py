"""Options that a constructor's signature does not spell out join it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

from metalearn.errors import ConfigError
from metalearn.inner.inner_loop import InnerLoop

__all__ = ["join_inherited", "join_options", "save_options", "take_joined"]

Init = TypeVar("Init", bound=Callable[..., None])
KEPT = "_joined_options"
POSITIONAL_OR_KEYWORD, KEYWORD_ONLY = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
VAR_POSITIONAL, VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def join_options(options_class: type[InnerLoop]) -> Callable[[Init], Init]:
    """Let a constructor take every option of a class, also those that its signature does not spell out.

    So a field is all that a new option needs: it is an argument at once, of the command line too. What is spelled out is known
    to type checkers and editors as well. A constructor with ``**kwargs`` passes on what it does not spell out: only the fields
    that the class adds to those of its base join it.

    Args:
        options_class: whose fields are the options. Those that are missing end the signature.
    """

    def decorate(init: Init) -> Init:
        names = {field.name for field in fields(options_class)}
        if any(parameter.kind is VAR_KEYWORD for parameter in inspect.signature(init).parameters.values()):
            names -= _names(options_class.__mro__[1])
        return _join(init, options_class, names)

    return decorate


def _join(init: Init, options_class: type[InnerLoop], names: set[str]) -> Init:
    """A constructor that takes these options, too."""
    spelled = inspect.signature(init, eval_str=True)
    hints = get_type_hints(options_class)
    parameters = list(spelled.parameters.values())
    rest = [parameter for parameter in parameters if parameter.kind is VAR_KEYWORD]
    others = [parameter for parameter in parameters if parameter.kind is not VAR_KEYWORD]
    ends_positions = bool(rest) or any(parameter.kind in (VAR_POSITIONAL, KEYWORD_ONLY) for parameter in others)
    kind = KEYWORD_ONLY if ends_positions else POSITIONAL_OR_KEYWORD
    joined = {
        field.name: inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in fields(options_class)
        if field.name in names - spelled.parameters.keys()
    }
    if not joined:
        return init
    flat = spelled.replace(parameters=[*others, *joined.values(), *rest])

    @functools.wraps(init)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        bound = flat.bind(self, *values, **named)
        self.__dict__.setdefault(KEPT, {}).update(
            {name: bound.arguments.pop(name) for name in joined if name in bound.arguments}
        )
        init(*bound.args, **bound.kwargs)

    __init__.__signature__ = flat  # type: ignore[attr-defined]
    __init__.__annotations__ = {
        name: parameter.annotation for name, parameter in flat.parameters.items() if name != "self"
    } | {"return": None}
    return cast(Init, __init__)


def join_inherited(kind: Any) -> None:
    """Let the inherited constructor of a class take the options that the class has beyond those of its bases.

    Raises:
        ConfigError: its options lack those that the constructor spells out.
    """
    inherited = [(base, base.options_class) for base in kind.__mro__[1:] if hasattr(base, "options_class")]
    if "__init__" in vars(kind) or not inherited:
        return
    base, taken = inherited[0]
    if not issubclass(kind.options_class, taken):
        name = kind.options_class.__name__
        raise ConfigError(
            f"{kind.__name__}.options_class is {name}, but it must derive from {taken.__name__}, which {base.__name__} takes; "
            f"write class {name}({base.__name__}.options_class)"
        )
    names = _names(kind.options_class) - _names(taken)
    if names:
        kind.__init__ = _join(kind.__init__, kind.options_class, names)


def _names(options_class: Any) -> set[str]:
    return {field.name for field in fields(options_class)} if is_dataclass(options_class) else set()


def save_options(module: Any, options: InnerLoop) -> None:
    """Make hyper-parameters of the options, without a look at the arguments of constructors, as Lightning's own way has."""
    module.save_hyperparameters(options.hyper_parameters(), frame=_nobodys_frame().gi_frame)


def _nobodys_frame() -> Any:
    """A frame that nothing has called, so that Lightning finds no constructor above it."""
    yield


def take_joined(module: Any, options: InnerLoop) -> InnerLoop:
    """The options of a module: those that its constructor spells out, and those that have joined it."""
    joined = module.__dict__.pop(KEPT, {})
    kind = module.options_class if issubclass(module.options_class, type(options)) else type(options)
    if not joined and kind is type(options):
        return options
    return cast(InnerLoop, kind.of({field.name: getattr(options, field.name) for field in fields(options)} | joined))
