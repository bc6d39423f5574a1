"""The options of the inner loop, each said once: its name, type, default, check and help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from metalearn.checks import MOST_STEPS, check_choice, check_flag, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.inner.losses import LossFunction, describe_loss
from metalearn.inner.memory import MEMORY_MODES, MemoryMode
from metalearn.inner.norm.task_norm import NormPolicy
from metalearn.inner.rules import UpdateRule
from metalearn.inner.step_sizes import InnerLR, check_inner_lr
from metalearn.inner.task_types import TaskType

__all__ = ["Compilation", "ExecutionName", "InnerLoop", "check_steps", "optional", "setting"]

ExecutionName = Literal["auto", "sequential", "vectorized"]
Compilation = bool | Literal["graph", "steps"]

Check = Callable[[str, object], None]
"""``check(name, value)`` raises a :class:`~metalearn.errors.ConfigError` that names the value, the constraint and the remedy."""

check_steps = partial(check_whole, least=1, most=MOST_STEPS)
"""Raise unless a value is a whole number of at least 1."""

Options = TypeVar("Options", bound="InnerLoop")


def setting(default: Any, text: str, check: Check | None = None) -> Any:
    """A field of :class:`InnerLoop`.

    Args:
        default: its value where nothing else is said.
        text: what the option does, for docstrings and the command line's help.
        check: is called with the option's name and its value.
    """
    return dataclasses.field(default=default, metadata={"help": text, "check": check})


def optional(check: Check) -> Check:
    """The same check, which lets ``None`` through."""
    return partial(_check_unless_none, check)


def _check_compile(name: str, value: object) -> None:
    if not isinstance(value, str):
        check_flag(name, value)
    elif value not in ("graph", "steps"):
        raise ConfigError(f"{name} is {value!r}, but it must be True, False, 'graph' or 'steps'; use {name}='steps'")


def _check_unless_none(check: Check, name: str, value: object) -> None:
    if value is not None:
        check(name, value)


@dataclass(frozen=True)
class InnerLoop:
    """How a module adapts to a task.

    To add an option, add a field: it joins the constructors, hyper-parameters, checkpoints and help of all algorithms that take
    these options. The algorithms' signatures are written out all the same, since type checkers and editors read them; a test
    holds them against the fields. An algorithm with options of its own derives a class from this one.

    Raises:
        ConfigError: an option is out of range, or two do not go together.

    Example:
        >>> from metalearn.inner import InnerLoop
        >>> options = InnerLoop(inner_steps=5, inner_lr=0.1)
        >>> options.steps_in_evaluation, options.memory
        (5, 'store')
    """

    inner_steps: int = setting(5, "how many steps adapt to a task in training.", check_steps)
    inner_lr: InnerLR = setting(
        0.4,
        "the step size, a number > 0. A list has one for each step, a mapping one for each beginning of a tensor's name. Some "
        'are learned: ``"learn"`` has one for each tensor, ``"learn_per_step"`` one for each tensor and step (MAML++), '
        '``"learn_per_element"`` one for each weight (Meta-SGD).',
        check_inner_lr,
    )
    first_order: bool = setting(False, "leave out second derivatives (FOMAML).")
    eval_inner_steps: int | None = setting(
        None,
        "how many steps adapt in validation, test and prediction; ``None`` for ``inner_steps``.",
        optional(check_steps),
    )
    loss: LossFunction = setting(
        "cross_entropy",
        'a name, such as ``"mse"`` or ``"gaussian_nll"``, or any ``loss(outputs, targets) -> scalar``. A module is trained '
        "along.",
    )
    inner_optimizer: str | UpdateRule = setting(
        "sgd",
        'the update rule: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adam"``, ``"adamw"``, an '
        ":class:`~metalearn.inner.UpdateRule`, or one of torch's optimisers by its full name (through the package higher).",
    )
    execution: ExecutionName = setting(
        "auto",
        '``"sequential"`` runs one task after another. ``"vectorized"`` and ``"auto"`` run several at '
        "once, where a test in float64 shows that this is exact.",
        partial(check_choice, choices=get_args(ExecutionName)),
    )
    memory: MemoryMode = setting(
        "store",
        'what the meta-gradient keeps: ``"store"`` the graph; ``"remat"`` each step\'s weights, to compute it again; '
        '``"mixed"`` least, by forward-over-reverse products.',
        partial(check_choice, choices=MEMORY_MODES),
    )
    norm: NormPolicy = setting(
        "transductive",
        'whose batch statistics normalise the query set: its own (``"transductive"``), those of the ``"support"`` set, a '
        'pretrained network\'s (``"running"``), or running ones for each inner step (``"per_step"``, MAML++).',
    )
    initial_inner_lr: float = setting(
        0.1,
        "where learned step sizes start.",
        partial(check_number, remedy="use 0.1", above=0),
    )
    inner_weight_decay: float = setting(
        0.0,
        "the weight decay of an inner step, added to the clipped gradient; ``adamw`` decouples it.",
        partial(check_number, remedy="use 0.0 for none", least=0),
    )
    inner_clip_norm: float | None = setting(
        None,
        "the largest norm of a task's inner gradient over all tensors; ``None`` for no bound.",
        optional(partial(check_number, remedy="use 10.0, or None for no bound", above=0)),
    )
    support_chunk: int | None = setting(
        None,
        "how many support examples give a gradient at once, to save memory; ``None`` for all. Each chunk has its own batch "
        "statistics.",
        optional(check_steps),
    )
    multi_step_loss: int | None = setting(
        None,
        "for how many outer steps the query losses of all steps count, less and less (MAML++).",
        optional(check_steps),
    )
    tasks_at_once: int | None = setting(
        None,
        "how many tasks a vectorised run adapts together; ``None`` for as many as suit the device.",
        optional(check_steps),
    )
    memory_limit: float | None = setting(
        None,
        "the share of the free memory that a vectorised run may take; ``None`` for no bound.",
        optional(partial(check_number, remedy="use 0.5, or None for no bound", above=0, most=1)),
    )
    compile: Compilation = setting(
        False,
        'compile a step of each shape; ``"graph"`` records it on a GPU, ``"steps"`` inner steps anywhere.',
        _check_compile,
    )
    kernels: bool = setting(
        True,
        "use our convolutions and batch normalisation where they are exact; ``False`` for torch's own.",
    )
    task: TaskType | None = setting(
        None,
        '``"classification"``, ``"multilabel"``, ``"regression"``, or ``None`` for what the targets and the loss say.',
        optional(partial(check_choice, choices=get_args(TaskType))),
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            check = field.metadata.get("check")
            if check is not None:
                check(field.name, getattr(self, field.name))
            elif field.type in (bool, "bool"):
                check_flag(field.name, getattr(self, field.name))
        if self.compile is True and self.multi_step_loss is not None:
            raise ConfigError(
                "compile is True with multi_step_loss, but its weights change at every step, and each would be compiled anew; "
                "use compile=False"
            )

    @classmethod
    def of(cls: type[Options], arguments: Mapping[str, Any]) -> Options:
        """The options among the arguments of an algorithm: ``InnerLoop.of(locals())`` at the top of its ``__init__``."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})

    @property
    def steps_in_evaluation(self) -> int:
        """The inner steps of validation, test and prediction."""
        return self.eval_inner_steps or self.inner_steps

    def hyper_parameters(self) -> dict[str, Any]:
        """All options in plain types, as checkpoints keep them; a loss that has no name is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.inner_lr, tuple):
            values["inner_lr"] = list(self.inner_lr)
        if isinstance(self.inner_optimizer, UpdateRule):
            values["inner_optimizer"] = self.inner_optimizer.describe()
        values["loss"] = describe_loss(self.loss)
        if values["loss"] is None:
            del values["loss"]
        return values

    @classmethod
    def help_texts(cls) -> dict[str, str]:
        """What each option does, by its name."""
        return {field.name: field.metadata["help"] for field in fields(cls) if "help" in field.metadata}
