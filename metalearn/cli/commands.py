"""The one table of commands: what each does, an example, and the function that runs it, which is imported only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from metalearn.checks import find_nearest, quote_value
from metalearn.cli.interrupts import Signals
from metalearn.errors import ConfigError

__all__ = ["COMMANDS", "LIGHTNING_COMMANDS", "Call", "Command", "find_command"]


@dataclass
class Call:
    """One call of the command line, as a command that trains needs it.

    Attributes:
        words: the command's name and its options.
        signals: what has been received.
        release_messages: says what libraries have said until now.
        ending: how the run ends, once there is a run; a :class:`~metalearn.cli.ending.Ending`.
    """

    words: list[str]
    signals: Signals
    release_messages: Callable[[], None]
    ending: Any = None


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        text: what the command does, in one line.
        example: how it is called.
        function: its full name, ``"module:name"``. It takes the options, and returns what is to be shown, if anything: a
            :class:`~metalearn.reports.summary.Report`.
        group: the heading below which the help lists it.
        takes_call: the function takes the whole :class:`Call` instead.
    """

    text: str
    example: str
    function: str
    group: str
    takes_call: bool = False

    def load(self) -> Callable[[Call], Any]:
        """Import what runs it."""
        module, _, name = self.function.partition(":")
        function = getattr(import_module(module), name)
        return function if self.takes_call else lambda call: function(call.words[1:])


RUN, MANY, DATA = "Train and evaluate", "Many runs", "Data, studies and the shell"
TRAINS = "metalearn.cli.lightning_cli:run"

COMMANDS = {
    "fit": Command(
        "Train a model, then test the best checkpoint.", "metalearn fit --config maml_omniglot_5w1s", TRAINS, RUN, True
    ),
    "validate": Command(
        "Evaluate a checkpoint on the validation tasks.",
        "metalearn validate --ckpt_path maml_glyphs_5w1s",
        TRAINS,
        RUN,
        True,
    ),
    "test": Command(
        "Evaluate a checkpoint on the test tasks.", "metalearn test --ckpt_path maml_glyphs_5w1s", TRAINS, RUN, True
    ),
    "predict": Command(
        "Classify images of your own classes, or the test tasks.",
        "metalearn predict --ckpt_path a.ckpt --support known --query new",
        "metalearn.cli.predict:run",
        RUN,
        True,
    ),
    "runs": Command(
        "List the runs of a folder: changes, result, time, state.", "metalearn runs", "metalearn.cli.runs:run", MANY
    ),
    "compare": Command(
        "Compare runs on the same test tasks, with the interval.",
        "metalearn compare maml_glyphs_5w1s anil_glyphs_5w1s",
        "metalearn.cli.compare:run",
        MANY,
    ),
    "resume": Command(
        "Go on with a run from its last checkpoint.",
        "metalearn resume maml_glyphs_5w1s/version_0",
        "metalearn.cli.resume:run",
        MANY,
        True,
    ),
    "seeds": Command(
        "Train from several seeds, and say how results spread.",
        "metalearn seeds maml_glyphs_5w1s --seeds 5",
        "metalearn.cli.seeds:run",
        MANY,
    ),
    "sweep": Command(
        "Try values of options, and find the best by validation.",
        "metalearn sweep maml_glyphs_5w1s --set model.inner_steps=1,3,5",
        "metalearn.cli.sweep:run",
        MANY,
    ),
    "data": Command(
        "Pack a data set, show it, check it, or write its tasks.",
        "metalearn data info --config maml_omniglot_5w1s",
        "metalearn.cli.data:run",
        DATA,
    ),
    "list": Command(
        "List configurations, models, data sets or checkpoints.",
        "metalearn list configs",
        "metalearn.cli.listing:run",
        DATA,
    ),
    "study": Command(
        "Run a study: what papers say, measured, with a table.",
        "metalearn study step_size --output study",
        "metalearn.cli.study:run",
        DATA,
    ),
    "completion": Command(
        "Print the script by which bash or zsh completes all this.",
        "metalearn completion bash > ~/.metalearn.sh",
        "metalearn.cli.completion:run",
        DATA,
    ),
}
"""Every command by its name, in the order in which the help lists them."""
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")
"""The subcommands of LightningCLI."""
SYNONYMS = {"train": "fit", "eval": "test", "evaluate": "test", "help": "--help", "version": "--version"}
"""What other command lines call these."""


def find_command(words: Sequence[str]) -> str:
    """The name of the command that the arguments begin with.

    Raises:
        ConfigError: they begin with no command, or an argument is not UTF-8.
    """
    first = words[0]
    for before, word in zip(("", *words), words, strict=False):
        if not _is_text(word):
            owner = f"{before.lstrip('-')} is" if before.startswith("--") and "=" not in before else "argument"
            raise ConfigError(
                f"{owner} {quote_value(word)}, which is not UTF-8, but configurations hold names as UTF-8; rename it"
            )
    if first in COMMANDS:
        return first
    if not first.startswith("-"):
        near = [SYNONYMS[first]] if first in SYNONYMS else find_nearest(first, list(COMMANDS), 1)
        remedy = f"did you mean {near[0]}?" if near else "see --help"
        raise ConfigError(f"command is {quote_value(first)}, but it must be one of {', '.join(COMMANDS)}; {remedy}")
    command = next((word for word in words if word in LIGHTNING_COMMANDS), None)
    if command is None or first.split("=")[0] not in ("--config", "-c"):
        raise ConfigError(
            f"the first argument is {quote_value(first)}, but a command comes first: {', '.join(COMMANDS)}; write for example: "
            f"metalearn {command or 'fit'} {first.split('=')[0]} ..."
        )
    return command


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
