"""What ``fit`` would build of its arguments, without a run: so that a mistake is named before many processes make it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metalearn.cli.arguments import prepare_arguments
from metalearn.cli.lightning_cli import MetaCLI
from metalearn.cli.parser import instantiate
from metalearn.cli.trainer_checks import check_run_name, check_trainer
from metalearn.errors import ConfigError

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """What the arguments of ``fit`` mean.

    Attributes:
        name: that the run would have.
        options: all of them, nested as in a configuration file, defaults included.
        model: the LightningModule.
        data: the LightningDataModule.
    """

    name: str
    options: dict[str, Any]
    model: Any
    data: Any


def rehearse(words: Sequence[str]) -> Rehearsal:
    """Parse what follows ``metalearn fit``, check it as ``fit`` does, and build its module and its data module.

    Args:
        words: the options, ``--config`` among them.

    Raises:
        MetalearnError: an option is wrong, or a constructor refuses its value.
    """
    with tempfile.TemporaryDirectory(prefix="metalearn-") as scratch:
        arguments, name = prepare_arguments(["fit", *words], Path(scratch))
        command = _Command(arguments, name)
    return Rehearsal(name, command.options, command.model, command.datamodule)


class _Command(MetaCLI):
    """LightningCLI up to where it would build the Trainer."""

    options: dict[str, Any]

    def _set_seed(self) -> None:
        """Check what is checked before the seed is set; nothing is drawn here."""
        check_run_name(self._get(self.config, "run_name"))
        check_trainer(self._get(self.config, "trainer").as_dict(), self._get(self.config, "seed_everything"))

    def instantiate_classes(self) -> None:
        fit = self.config["fit"]
        if "data" not in fit:
            raise ConfigError("data is missing, but every run needs the same data; give it in the config or by --data")
        self.options = yaml.safe_load(self._parser("fit").dump(fit))
        built = instantiate(self.parser, self.config)["fit"]
        self.model, self.datamodule = built["model"], built["data"]

    def after_instantiate_classes(self) -> None:
        """Nothing: there is no run that could have a name."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""
