"""The command line: ``python -m metalearn {fit,validate,test,predict,data,study}``."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from metalearn import bilevel_outcome, data_command, outcome, own_images, study_command
from metalearn.allocator import keep_buffers
from metalearn.command import DEFAULT_CONFIG, option, prepare_arguments, shipped_configs
from metalearn.datamodules.checks import check_range
from metalearn.errors import MetalearnError
from metalearn.modules import MetaModule
from metalearn.modules.bilevel import BilevelCore
from metalearn.modules.callbacks import PredictionTable, RunClock, TaskTable
from metalearn.modules.linear_models import LinearBilevel
from metalearn.parsing import Parser, one_line, own_error

__all__ = ["MetaCLI", "main"]


class MetaCLI(LightningCLI):
    """LightningCLI with our defaults: checkpoints by validation accuracy, tables, pictures and a summary."""

    def __init__(self, args: Sequence[str], run_name: str) -> None:
        self.run_name = run_name
        self.clock, self.tasks, self.predictions = RunClock(), TaskTable(), PredictionTable()
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": "metalearn",
                "description": "Gradient-based meta-learning and bilevel optimisation on PyTorch Lightning.",
                "epilog": f"Beside these: metalearn data {{{','.join(data_command.ACTIONS)}}} for data sets, metalearn study "
                f"{{{','.join(study_command.STUDIES)}}} for studies on real data; each has --help. fit --config takes a file or "
                f"the name of a shipped configuration: {', '.join(shipped_configs())}; without one it is {DEFAULT_CONFIG}.",
            },
            save_config_kwargs={"overwrite": True},
            load_from_checkpoint_support=False,
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.init_args.ways", "model.init_args.backbone.init_args.ways", compute_fn=_most_ways)
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint after fit")
        parser.add_argument(
            "--run_name", type=str, default=None, help="the folder below runs/; default: the config's name"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's config is already among the arguments, see :mod:`metalearn.command`."""

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what one of them found wrong comes out as it said it."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise own_error(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add a CSV logger where the user names none, and our callbacks for our modules."""
        asked = self._get(self.config_init, "trainer")
        if asked.get("logger") in (None, True) and "logger" not in kwargs:
            root = asked.get("default_root_dir") or "runs"
            name = self._get(self.config_init, "run_name") or self.run_name
            kwargs["logger"] = CSVLogger(save_dir=str(root), name=name)
        user_saves = _user_saves(asked.get("callbacks"))  # asked before the Trainer adds its own to this very list
        trainer: Any = super().instantiate_trainer(**kwargs)
        if isinstance(self.model, (MetaModule, LinearBilevel)):
            ours: list[L.Callback] = [self.clock, self.tasks]
            if self.subcommand == "predict":
                ours.append(self.predictions)
            saves = asked.get("enable_checkpointing") is not False and not asked.get("fast_dev_run")
            if self.subcommand == "fit" and saves:
                monitor, mode = ("val/acc", "max") if getattr(self.model, "classifies", False) else ("val/loss", "min")
                if not user_saves:  # then the one that is there is the Trainer's default
                    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, ModelCheckpoint)]
                ours.append(ModelCheckpoint(monitor=monitor, mode=mode, filename="best", enable_version_counter=False))
                ours.append(
                    ModelCheckpoint(
                        filename="last", every_n_train_steps=100, save_top_k=1, enable_version_counter=False
                    )
                )
            if self.subcommand != "fit":  # it would put back the raw weights beside the averaged ones of the checkpoint
                trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, WeightAveraging)]
            # ModelCheckpoint must stay last, as Lightning orders them
            savers = [each for each in (*trainer.callbacks, *ours) if isinstance(each, ModelCheckpoint)]
            others = [each for each in (*trainer.callbacks, *ours) if not isinstance(each, ModelCheckpoint)]
            trainer.callbacks = [*others, *savers]
        return trainer

    def after_instantiate_classes(self) -> None:
        if isinstance(self.model, (MetaModule, BilevelCore)):
            text = self._parser(self.subcommand).dump(self.config[self.subcommand])
            config = yaml.safe_load(text)
            self.model.run_config = yaml.safe_dump({key: config[key] for key in ("model", "data") if key in config})
            self.model.run_name = self._get(self.config_init, "run_name") or self.run_name
            backbone = config["model"]["init_args"].get("backbone") or {}
            if getattr(self.model, "backbone_description", "") is None and "class_path" in backbone:
                self.model.backbone_description = {
                    "class_path": backbone["class_path"],
                    "init_args": {**backbone.get("init_args", {}), **backbone.get("dict_kwargs", {})},
                }

    def after_fit(self) -> None:
        """Test the best checkpoint, draw the pictures, print the summary."""
        if isinstance(self.model, MetaModule) and not getattr(self.trainer, "fast_dev_run", False):
            outcome.after_fit(self)
        if isinstance(self.model, LinearBilevel) and not getattr(self.trainer, "fast_dev_run", False):
            bilevel_outcome.after_fit(self)

    def after_test(self) -> None:
        if isinstance(self.model, MetaModule):
            outcome.after_test(self)
        if isinstance(self.model, LinearBilevel):
            bilevel_outcome.after_test(self)

    def after_validate(self) -> None:
        if isinstance(self.model, MetaModule):
            outcome.after_validate(self)

    def after_predict(self) -> None:
        if isinstance(self.model, MetaModule):
            outcome.after_predict(self)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; what a user can put right ends with one line and exit code 2.

    Args:
        args: what follows ``python -m metalearn``; ``None`` for the process's own arguments.
    """
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    given = [arg for arg in given if arg != "--debug"]
    _quieten()
    keep_buffers()
    try:
        if not given:
            given = ["--help"]
        if given[0] == "predict" and option(given, "--support") is not None:
            own_images.predict(given[1:])
            return
        if given[0] == "data":
            data_command.run(given[1:] or ["--help"])
            return
        if given[0] == "study":
            study_command.run(given[1:] or ["--help"])
            return
        with tempfile.TemporaryDirectory(prefix="metalearn-") as scratch:
            arguments, name = prepare_arguments(given, Path(scratch))
            MetaCLI(arguments, name)
    except (MetalearnError, MisconfigurationException) as error:
        if debug:
            raise
        print(f"metalearn: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)


def _most_ways(ways: Any) -> int:
    """How many outputs a network needs for tasks of so many classes, or of so many at most."""
    return check_range("ways", ways, 2)[1]


def _quieten() -> None:
    """Drop what says nothing about the run: advertisements, deprecations between libraries, and that a test saves nothing."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        for handler in (logger := logging.getLogger(name)).handlers:
            handler.addFilter(_is_no_tip)
        logger.addFilter(_is_no_tip)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _user_saves(callbacks: Any) -> bool:
    every = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(each, ModelCheckpoint) for each in every)
