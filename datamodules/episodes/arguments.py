"""The arguments that data modules share, each said once: its name, type, default, check and help."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar, cast, get_args, get_type_hints

from metalearn.checks import (
    MOST_OF_A_WIDTH,
    Count,
    check_flag,
    check_kind,
    check_range,
    check_seed,
    check_whole,
    read_path,
)
from metalearn.datamodules.episodes.options import EpisodeOptions

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack  # torch brings it

__all__ = [
    "Argument",
    "ClassArguments",
    "FileArguments",
    "ImageArguments",
    "LoaderArguments",
    "Unpack",
    "get_texts",
    "select",
    "spell_out",
]

MOST_TASKS = 2**62
"""Of an epoch: its episodes are numbered, never listed, so that a long one costs nothing."""
MOST_WORKERS = 1024
LAST = ("options", "num_workers", "cache_dir", "train_seed")
"""What stands at the end of a signature, behind the arguments that a data set has for itself."""


class Argument(NamedTuple):
    """An argument that data modules share.

    Attributes:
        default: its value where nothing else is said.
        text: what it does, for docstrings and the command line's help.
        check: is called with the argument's name and its value, and raises where the value will not do.
    """

    default: Any
    text: str
    check: Callable[[str, Any], object] | None = None


check_tasks = partial(check_whole, least=1, most=MOST_TASKS)


def check_options(name: str, value: object) -> None:
    """Raise unless a value is :class:`EpisodeOptions`, or ``None``."""
    if value is not None:
        check_kind(name, value, EpisodeOptions, "use EpisodeOptions(unlabeled=5), or leave it out")


def check_train_seed(name: str, value: object) -> None:
    """Raise unless a value is a seed, or ``None``."""
    if value is not None:
        check_seed(name, value)


def check_cache(name: str, value: object) -> None:
    """Raise unless a value is a path, or ``None``."""
    if value is not None:
        read_path(name, value, "give a folder, or leave it out")


class LoaderArguments(TypedDict, total=False):
    """How many episodes there are, and how they are loaded."""

    tasks_per_batch: Annotated[int, Argument(4, "how many tasks a batch has, ``B``.", check_tasks)]
    train_tasks: Annotated[
        int,
        Argument(
            1000, "how many training tasks make an epoch.", partial(check_tasks, remedy="leave it out for its default")
        ),
    ]
    val_tasks: Annotated[
        int, Argument(200, "how many validation tasks there are. They are the same every time.", check_tasks)
    ]
    test_tasks: Annotated[
        int, Argument(600, "how many test tasks there are. They are the same every time.", check_tasks)
    ]
    seed: Annotated[int, Argument(0, "the seed that tasks are drawn by.", check_seed)]
    train_seed: Annotated[
        int | None,
        Argument(
            None,
            "the seed of the training tasks alone; ``None`` for ``seed``. With it, runs differ but are tested alike.",
            check_train_seed,
        ),
    ]
    num_workers: Annotated[
        int,
        Argument(
            0,
            "how many processes draw tasks; 0 draws them in the process itself.",
            partial(check_whole, least=0, most=MOST_WORKERS),
        ),
    ]


class TaskArguments(TypedDict, total=False):
    """What a task of classes is made of."""

    ways: Annotated[
        Count,
        Argument(
            5,
            "how many classes a task has, ``N``. From a range such as ``[5, 20]`` each task draws its own number.",
            partial(check_range, least=2),
        ),
    ]
    shots: Annotated[
        Count,
        Argument(1, "how many support examples each class has, ``K``; or a range.", partial(check_range, least=1)),
    ]
    queries: Annotated[
        Count,
        Argument(15, "how many query examples each class has, ``Q``; or a range.", partial(check_range, least=1)),
    ]


class ClassArguments(TaskArguments, LoaderArguments, total=False):
    """What episodes of classes take."""

    options: Annotated[
        EpisodeOptions | None,
        Argument(None, "further options of episodes, an :class:`EpisodeOptions`; ``None`` for none.", check_options),
    ]


class ImageArguments(ClassArguments, total=False):
    """What episodes of images out of a packed store take."""

    cache_dir: Annotated[
        str | None,
        Argument(
            None,
            "where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.",
            check_cache,
        ),
    ]


class FileArguments(ImageArguments, total=False):
    """What episodes of images out of files take."""

    image_size: Annotated[
        int,
        Argument(
            84,
            "how many pixels an image is high and wide. The whole image is resized; its aspect ratio is not kept.",
            partial(check_whole, least=8, most=MOST_OF_A_WIDTH),
        ),
    ]


Init = TypeVar("Init", bound=Callable[..., None])
Arguments = TypeVar("Arguments", bound=Mapping[str, Any])


def spell_out(shared: type, last: tuple[str, ...] = LAST, **defaults: Any) -> Callable[[Init], Init]:
    """Spell shared arguments out in the signature of a constructor that takes them as ``**arguments``.

    The signature that users, editors and the command line see is flat: first the constructor's own arguments, then the shared
    ones, then its own keyword-only ones, then ``last``. So a dozen data sets share arguments which are said in one place, and
    type checkers know the names and types by ``Unpack``. The constructor gets every argument by its name, checked.

    Args:
        shared: a ``TypedDict`` whose values are ``Annotated`` with an :class:`Argument`.
        last: names of the shared ones that end the signature.
        defaults: of shared arguments whose defaults are others here.
    """

    def decorate(init: Init) -> Init:
        arguments = _read_arguments(shared, defaults)
        flat = _flatten(init, arguments, last)
        flags = [name for name, parameter in flat.parameters.items() if parameter.annotation is bool]

        def __init__(self: Any, *values: Any, **named: Any) -> None:
            try:
                bound = flat.bind(self, *values, **named)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}: {error}") from None
            bound.apply_defaults()
            del bound.arguments["self"]
            for name, (_, argument) in arguments.items():
                if argument.check is not None:
                    argument.check(name, bound.arguments[name])
            for name in flags:
                check_flag(name, bound.arguments[name])
            init(self, **bound.arguments)

        __init__.__qualname__, __init__.__module__ = init.__qualname__, init.__module__
        __init__.texts = {name: argument.text for name, (_, argument) in arguments.items()}  # type: ignore[attr-defined]
        __init__.checks = {name: argument.check for name, (_, argument) in arguments.items()}  # type: ignore[attr-defined]
        __init__.__signature__ = flat  # type: ignore[attr-defined]
        __init__.__annotations__ = {
            **{name: parameter.annotation for name, parameter in flat.parameters.items() if name != "self"},
            "return": None,
        }
        return cast(Init, __init__)

    return decorate


def get_texts(kind: type) -> dict[str, str]:
    """What each shared argument of a class's constructor does, by its name."""
    return getattr(kind.__init__, "texts", {})  # type: ignore[misc]


def select(arguments: Mapping[str, Any], kind: type[Arguments]) -> Arguments:
    """Those of the arguments that a ``TypedDict`` names, for the constructor that takes them."""
    return cast(Arguments, {name: arguments[name] for name in kind.__annotations__})


def _read_arguments(shared: type, defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Argument]]:
    """The type of each shared argument, and what is said of it."""
    arguments = {}
    for name, hint in get_type_hints(shared, include_extras=True).items():
        kind, argument = get_args(hint)
        arguments[name] = kind, argument._replace(default=defaults.get(name, argument.default))
    return arguments


def _flatten(
    init: Callable[..., None], arguments: Mapping[str, tuple[Any, Argument]], last: tuple[str, ...]
) -> inspect.Signature:
    """The signature with every argument in its place."""
    own = inspect.signature(init, eval_str=True)
    first, middle = [], []
    for parameter in own.parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            first.append(parameter)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            middle.append(parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD))
    spelled = {
        name: inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=argument.default, annotation=kind
        )
        for name, (kind, argument) in arguments.items()
    }
    end = [spelled.pop(name) for name in last if name in spelled]
    return inspect.Signature([*first, *spelled.values(), *middle, *end], return_annotation=None)
