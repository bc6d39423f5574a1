"""The options of the inner loop, each said once: its name, type, default, check and help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from metalearn.checks import MOST_STEPS, check_choice, check_flag, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.inner.losses import LossFunction
from metalearn.inner.memory import MEMORY_MODES, MemoryMode
from metalearn.inner.norm.task_norm import NormPolicy
from metalearn.inner.rules import UpdateRule
from metalearn.inner.step_sizes import InnerLR, check_inner_lr

__all__ = ["ExecutionName", "InnerLoop", "check_steps", "optional", "setting"]

ExecutionName = Literal["auto", "sequential", "vectorized"]

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

    def check_unless_none(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none


@dataclass(frozen=True)
class InnerLoop:
    """How a module adapts to a task.

    To add an option, add a field: it joins the constructors, hyper-parameters, checkpoints and help of all algorithms that take
    these options. The algorithms' signatures are written out all the same, since type checkers and editors read them; a test
    holds them against the fields. An algorithm with options of its own derives a class from this one.

    Raises:
        ConfigError: an option is out of range, or two do not go together.
    """

    inner_steps: int = setting(5, "the adaptation steps in training.", check_steps)
    inner_lr: InnerLR = setting(
        0.4,
        'the step size. A list gives one a step, a mapping one for each beginning of a tensor\'s name. ``"learn"`` learns one '
        'per parameter tensor, ``"learn_per_step"`` one per tensor and step (MAML++), ``"learn_per_element"`` one per element '
        "(Meta-SGD).",
        check_inner_lr,
    )
    first_order: bool = setting(False, "treat the inner gradients as constants (FOMAML).")
    eval_inner_steps: int | None = setting(
        None,
        "the steps in validation, test, prediction and :meth:`adapt`; ``None`` for ``inner_steps``.",
        optional(check_steps),
    )
    loss: LossFunction = setting(
        "cross_entropy",
        '``"cross_entropy"``, ``"mse"``, or in Python any ``loss(outputs, targets) -> scalar``. Integer targets are class '
        "labels, floats are whatever the loss takes them for. A ``torch.nn.Module`` is trained, cast and saved with the module.",
    )
    inner_optimizer: str | UpdateRule = setting(
        "sgd",
        'the update rule: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adam"``, ``"adamw"``, an '
        ':class:`~metalearn.inner.UpdateRule`, or the full name of a class such as ``"torch.optim.Adagrad"`` (by way of the '
        "package higher, sequentially).",
    )
    execution: ExecutionName = setting(
        "auto",
        '``"sequential"`` runs one task after another, for any network. ``"vectorized"`` runs several in one set of kernels, '
        'where a float64 probe shows that to be exact, else sequentially. ``"auto"`` is vectorised wherever it is exact.',
        partial(check_choice, choices=get_args(ExecutionName)),
    )
    memory: MemoryMode = setting(
        "store",
        'what is kept of the inner steps for the second-order meta-gradient. ``"store"`` keeps their graph. ``"remat"`` keeps '
        'the iterates, and computes each step again. ``"mixed"`` keeps as little, by forward-over-reverse products.',
        partial(check_choice, choices=MEMORY_MODES),
    )
    norm: NormPolicy = setting(
        "transductive",
        'whose statistics normalise the query set: ``"transductive"`` (its own, as in the MAML paper), ``"support"`` (those of '
        'the support set), ``"running"`` (stored ones of a pretrained network), or ``"per_step"`` (running ones kept for each '
        "number of inner steps, as in MAML++). Support and query sets are normalised apart.",
    )
    initial_inner_lr: float = setting(
        0.1,
        'where the step sizes of ``inner_lr="learn"`` start.',
        partial(check_number, remedy="use 0.1", above=0),
    )
    inner_weight_decay: float = setting(
        0.0,
        "the rate of weight decay in an inner step, as torch's optimisers take it: times the weights, added to the clipped "
        "gradient. With ``adamw`` it is decoupled, and takes the place of that rule's 0.01.",
        partial(check_number, remedy="use 0.0 for none", least=0),
    )
    inner_clip_norm: float | None = setting(
        None,
        "the largest norm of a task's inner gradient, over all its tensors, as by ``torch.nn.utils.clip_grad_norm_`` before the "
        "step; ``None`` for no bound.",
        optional(partial(check_number, remedy="use 10.0, or None for no bound", above=0)),
    )
    support_chunk: int | None = setting(
        None,
        "how many support examples give an inner gradient at once, to save memory. The gradients of the chunks are averaged, and "
        "batch normalisation takes the statistics of each chunk. ``None`` for all.",
        optional(check_steps),
    )
    multi_step_loss: int | None = setting(
        None,
        "over how many outer steps the query losses after every inner step count: first alike, at the end the last alone "
        "(MAML++). ``None`` for the last alone from the start.",
        optional(check_steps),
    )
    tasks_at_once: int | None = setting(
        None,
        "how many tasks the vectorised execution adapts together; ``None`` for as many as suit the device. It bounds memory; the "
        "meta-gradient stays that of all tasks.",
        optional(check_steps),
    )
    compile: bool = setting(
        False,
        "compile the step. There is one compilation per shape, which the log names. It takes minutes for a large network on a "
        "CPU.",
    )
    kernels: bool = setting(
        True,
        "use our operators for convolutions and batch normalisation where they are exact; ``False`` for torch's own.",
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            check = field.metadata.get("check")
            if check is not None:
                check(field.name, getattr(self, field.name))
            elif field.type in (bool, "bool"):
                check_flag(field.name, getattr(self, field.name))
        if self.compile and self.multi_step_loss is not None:
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
        if callable(self.loss):
            del values["loss"]
        return values

    @classmethod
    def help_texts(cls) -> dict[str, str]:
        """What each option does, by its name."""
        return {field.name: field.metadata["help"] for field in fields(cls) if "help" in field.metadata}
