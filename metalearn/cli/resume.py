"""``metalearn resume RUN``: go on from a run's last checkpoint, in its folder, with the options that it was started with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.cli.commands import Call
from metalearn.cli.config_files import read_config
from metalearn.errors import ConfigError
from metalearn.experiments.asked import read_words
from metalearn.experiments.folder import Run, find_run
from metalearn.reports.summary import Summary

__all__ = ["make_words", "run"]

HELP = """usage: metalearn resume RUN [options of fit]

Go on from a run's last checkpoint, in its folder, with the options that it was
started with. An interrupted training ends as if it had not been interrupted.

  RUN           the run's folder, or its name as metalearn runs lists it; a name
                without version_N is the newest run of that name
  --NAME VALUE  another value of an option of fit, such as a later end

Examples:
  metalearn resume maml_glyphs_5w1s
  metalearn resume maml_glyphs_5w1s/version_3 --trainer.max_steps 20000"""
ENDS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")
"""Options that say where a training ends."""
NOT_TAKEN = {
    "config": "its configuration is the run's own",
    "c": "its configuration is the run's own",
    "ckpt_path": "it goes on from the run's last checkpoint",
    "run_name": "it goes on in the run's folder",
    "trainer.default_root_dir": "it goes on in the run's folder",
}


def run(call: Call) -> Summary | None:
    """Go on with a run.

    Raises:
        MetalearnError: there is no such run, nothing is left to do, or training fails.
    """
    words = call.words[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return None
    if words[0].startswith("-"):
        raise ConfigError(
            f"resume begins with {words[0]!r}, but the run comes first; write metalearn resume RUN {words[0]} ..."
        )
    call.words = make_words(find_run(words[0]), words[1:])
    from metalearn.cli import lightning_cli  # torch and Lightning: seconds, which a wrong name need not wait for

    return lightning_cli.run(call)


def make_words(entry: Run, changes: Sequence[str]) -> list[str]:
    """The arguments of the ``fit`` that goes on with a run.

    Args:
        entry: the run.
        changes: options beside those that it has.

    Raises:
        ConfigError: it has ended, or runs; nothing was saved; or an option would lead elsewhere.
    """
    asked = read_words(["fit", *changes], ["fit"], "")
    names = [word.split("=")[0].lstrip("-") for word in changes if word.startswith("-")]
    for name in names:
        if name in NOT_TAKEN:
            raise ConfigError(f"resume takes no --{name}, since {NOT_TAKEN[name]}; leave it out, or use metalearn fit")
    config, last = entry.folder / "config.yaml", entry.folder / "checkpoints/last.ckpt"
    if not config.is_file():
        raise ConfigError(f"run {entry.name} has no config.yaml, so it cannot go on; train with metalearn fit")
    options = read_config(config)
    trainer = options.get("trainer") if isinstance(options.get("trainer"), dict) else {}
    if "LOCAL_RANK" not in os.environ:  # a further process of the run, which the first one has checked
        _check_state(entry, asked.changes, trainer or {})
    if not last.is_file():
        again = f": {entry.record.first.repeat}" if entry.record is not None else " with metalearn fit"
        raise ConfigError(
            f"run {entry.name} has no {last.relative_to(entry.folder)} to go on from; begin it anew{again}"
        )
    words = ["fit", "--config", str(config), *changes, "--ckpt_path", str(last)]
    return words + _keep_place(entry.folder, options, trainer or {})


def _check_state(entry: Run, changes: Mapping[str, str], trainer: Mapping[str, Any]) -> None:
    if entry.record is None:
        return
    session = entry.record.session
    if session.command != "fit":
        raise ConfigError(
            f"run {entry.name} is of metalearn {session.command}, so nothing is left to train; run that again"
        )
    if session.state == "running":
        raise ConfigError(
            f"run {entry.name} is running (process {session.process.get('pid')}); wait until it has ended, or end it"
        )
    step = session.step or 0
    if session.state == "finished" and not set(ENDS) & set(changes):
        by_steps = isinstance(trainer.get("max_steps"), int) and trainer["max_steps"] >= 0
        later = (
            f"--trainer.max_steps {2 * step}"
            if by_steps
            else f"--trainer.max_epochs {2 * (trainer.get('max_epochs') or 1)}"
        )
        raise ConfigError(f"run {entry.name} has finished at step {step}; to go further, add for example {later}")
    most = changes.get("trainer.max_steps", "")
    if most.isdigit() and 0 < int(most) <= step and session.state == "finished":
        raise ConfigError(
            f"trainer.max_steps is {most}, but run {entry.name} has finished at step {step}; use for example {2 * step}"
        )


def _keep_place(folder: Path, options: Mapping[str, Any], trainer: Mapping[str, Any]) -> list[str]:
    """What says that the run's own folder is meant where its options name a place, from wherever it is called now."""
    if trainer.get("logger") is False or not (options.get("run_name") or trainer.get("default_root_dir")):
        return []
    place = folder.parent if folder.parent.name else folder.parent.resolve()
    return [f"--run_name={place.name}", f"--trainer.default_root_dir={place.parent}"]
