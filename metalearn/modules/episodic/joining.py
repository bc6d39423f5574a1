"""Options that a constructor's signature does not spell out join it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast, get_type_hints

from metalearn.inner.inner_loop import InnerLoop

__all__ = ["join_inherited", "join_options", "save_options", "take_joined"]

Init = TypeVar("Init", bound=Callable[..., None])
KEPT = "_joined_options"


def join_options(options_class: type[InnerLoop]) -> Callable[[Init], Init]:
    """Let a constructor take every option of a class, also those that its signature does not spell out.

    So a field is all that a new option needs: it is an argument at once, of the command line too. What is spelled out is known
    to type checkers and editors as well.

    Args:
        options_class: whose fields are the options. Those that are missing end the signature.
    """

    def decorate(init: Init) -> Init:
        spelled = inspect.signature(init, eval_str=True)
        hints = get_type_hints(options_class)
        joined = {
            field.name: inspect.Parameter(
                field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=hints[field.name]
            )
            for field in fields(options_class)
            if field.name not in spelled.parameters
        }
        if not joined:
            return init
        flat = spelled.replace(parameters=[*spelled.parameters.values(), *joined.values()])

        @functools.wraps(init)
        def __init__(self: Any, *values: Any, **named: Any) -> None:
            bound = flat.bind(self, *values, **named)
            arguments = dict(bound.arguments)
            self.__dict__.setdefault(KEPT, {}).update(
                {name: arguments.pop(name) for name in joined if name in arguments}
            )
            init(**arguments)

        __init__.__signature__ = flat  # type: ignore[attr-defined]
        __init__.__annotations__ = {
            name: parameter.annotation for name, parameter in flat.parameters.items() if name != "self"
        } | {"return": None}
        return cast(Init, __init__)

    return decorate


def join_inherited(kind: Any) -> None:
    """Let the inherited constructor of a class take the options that the class has beyond those of its base."""
    base = kind.__mro__[1]
    if "__init__" in vars(kind) or not issubclass(kind.options_class, getattr(base, "options_class", object)):
        return
    if {field.name for field in fields(kind.options_class)} > {field.name for field in fields(base.options_class)}:
        kind.__init__ = join_options(kind.options_class)(kind.__init__)


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
