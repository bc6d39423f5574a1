"""LightningCLI for modules and data of ours and of users: ``python -m metalearn {fit,validate,test,predict}``."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from metalearn.carried import is_name, read_checkpoint
from metalearn.checks import check_range
from metalearn.cli import data, outcome, study
from metalearn.cli.arguments import DEFAULT_CONFIG, shipped_configs
from metalearn.cli.ending import Ending
from metalearn.cli.parser import Parser, one_line, own_error
from metalearn.cli.processes import check_devices, take_torchrun
from metalearn.cli.run_files import NAMES, find_checkpoint, run_folder
from metalearn.cli.trainer_checks import check_monitors, check_optimizer, check_run_name, check_trainer
from metalearn.cli.trainer_options import barebones, check_finders, names, with_whole_checkpoints
from metalearn.errors import ConfigError, DataError, MetalearnError, suggest_space
from metalearn.modules.callbacks.measuring import PredictionTable, RunClock, StartNotice, TaskTable, folder
from metalearn.modules.callbacks.progress import show_progress
from metalearn.modules.callbacks.run_log import LogFromHere, RunLog
from metalearn.modules.callbacks.saving import BestCheckpoint, LastCheckpoint
from metalearn.modules.callbacks.stopping import StopOnSignal
from metalearn.reports.outcome import ReportsOutcome

__all__ = ["MetaCLI"]


UNWRITABLE = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EIO", "ENAMETOOLONG")
}
"""Reasons why a file of a run cannot be written."""


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` of a run: that of its training, whatever evaluates it later."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" or not (isinstance(trainer.logger, RunLog) and trainer.logger.evaluates):
            super().setup(trainer, pl_module, stage)


class MetaCLI(LightningCLI):
    """LightningCLI with our defaults: checkpoints by validation accuracy, tables, pictures and a summary."""

    def __init__(
        self,
        args: Sequence[str],
        run_name: str,
        ending: Ending | None = None,
        say_held: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_name = run_name
        self.starts = StartNotice(say_held)
        self.ending = ending or Ending()
        self._step = 0
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
                "epilog": f"Beside these: metalearn data {{{','.join(data.ACTIONS)}}} for data sets, metalearn study "
                f"{{{','.join(study.STUDIES)}}} for studies on real data; each has --help. fit --config takes a file or "
                f"the name of a shipped configuration: {', '.join(shipped_configs())}; without one it is {DEFAULT_CONFIG}.",
            },
            save_config_callback=SaveConfig,
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
        self.checkpoint = self._read_checkpoint()

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint that was asked for, before anything is built or written."""
        asked = self.config[self.config["subcommand"]]
        if asked.get("weights_only") is False:
            raise ConfigError("weights_only is False, but pickled code is never executed; leave it out")
        path = asked.get("ckpt_path")
        return None if path is None or path in (*NAMES, "hpc") else read_checkpoint(path)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's config is already among the arguments, see :mod:`metalearn.cli.arguments`."""

    def _set_seed(self) -> None:
        """Seed everything, once what Lightning would take and fail on much later has been checked."""
        check_run_name(self._get(self.config, "run_name"))
        check_trainer(self._get(self.config, "trainer").as_dict(), self._get(self.config, "seed_everything"))
        super()._set_seed()

    def _check_checkpoint(self) -> None:
        check = getattr(self.model, "check_checkpoint", None) if isinstance(self.model, ReportsOutcome) else None
        path = self.config_init[str(self.subcommand)].get("ckpt_path")
        if path is not None and path != "hpc" and check is not None:
            check(self.checkpoint or read_checkpoint(path), self.trainer, trains=self.subcommand == "fit")
        self.checkpoint = None

    before_fit = before_validate = before_test = before_predict = _check_checkpoint

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what one of them found wrong comes out as it said it."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise own_error(error) from error
        trainer: Any = self.trainer
        check_monitors(trainer.callbacks, self.model)
        if self.subcommand == "fit" and isinstance(self.model, ReportsOutcome):
            check_optimizer(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add what saves, logs, shows and ends a run, where the user names nothing else."""
        asked = self._get(self.config_init, "trainer")
        plain = bool(asked.get("barebones"))  # Lightning refuses loggers, bars and checkpoints beside it
        self._find_checkpoint()
        if asked.get("logger") in (None, True) and "logger" not in kwargs and not plain:
            kwargs["logger"] = self._make_logger()
        kwargs.update(take_torchrun(asked), **barebones(asked))
        kwargs["plugins"] = with_whole_checkpoints(asked)
        # asked before the Trainer adds its own to this list
        names_saver = names(asked.get("callbacks"), ModelCheckpoint)
        trainer: Any = super().instantiate_trainer(**kwargs)
        check_devices(trainer)
        check_finders(trainer.callbacks, self.model, self.datamodule)
        ours: list[L.Callback] = [self.starts]
        reports = isinstance(self.model, ReportsOutcome)
        if reports:
            ours.append(self.clock)
            if hasattr(self.model, "test_table"):
                ours += [self.tasks, *([self.predictions] if self.subcommand == "predict" else [])]
        last = None
        if self.subcommand == "fit":
            ours.append(LogFromHere())
            if asked.get("enable_checkpointing") is not False and not asked.get("fast_dev_run") and not plain:
                last = LastCheckpoint()
                monitor = getattr(self.model, "checkpoint_monitor", None) if reports else None
                if monitor is not None:
                    if not names_saver:  # then the one that is there is the Trainer's default
                        trainer.callbacks = [
                            each for each in trainer.callbacks if not isinstance(each, ModelCheckpoint)
                        ]
                    ours.append(BestCheckpoint(*monitor))
                ours.append(last)
        else:  # it would put back the raw weights beside the averaged ones of the checkpoint
            trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, WeightAveraging)]
        trainer.callbacks = show_progress(trainer.callbacks)
        # what saves must stay behind what it saves, and stopping behind both
        every = [*trainer.callbacks, *ours]
        trainer.callbacks = [
            *(each for each in every if not isinstance(each, Checkpoint)),
            *(each for each in every if isinstance(each, Checkpoint)),
            StopOnSignal(self.ending.signals, last),
        ]
        new = Path(trainer.logger.log_dir) if isinstance(trainer.logger, RunLog) and not trainer.fast_dev_run else None
        self.ending.follow(trainer, None if new is None or new.exists() else new)
        return trainer

    def _find_checkpoint(self) -> None:
        """Make a path of ``last`` and ``best``, which Lightning would look for in the folder of the new run."""
        config = self.config_init[str(self.subcommand)]
        given = config.get("ckpt_path")
        if given in NAMES:
            given = config["ckpt_path"] = str(find_checkpoint(given, self._runs(), self.subcommand == "fit"))
            self.checkpoint = read_checkpoint(given)
        self._step = int((self.checkpoint or {}).get("global_step", 0))

    def _make_logger(self) -> RunLog:
        """Write into the run that the checkpoint is from, unless the user names another place."""
        config = self.config_init[str(self.subcommand)]
        elsewhere = config.get("run_name") or config["trainer"].get("default_root_dir")
        checkpoint = config.get("ckpt_path")
        where = run_folder(checkpoint) if checkpoint else None
        if where is None or (elsewhere and where.parent != self._runs()):
            return RunLog(str(self._runs().parent), self._runs().name)
        self.run_name = where.parent.name or self.run_name
        return RunLog(str(where.parent.parent), where.parent.name, where.name, self.subcommand != "fit", self._step)

    def _runs(self) -> Path:
        config = self.config_init[str(self.subcommand)]
        return Path(config["trainer"].get("default_root_dir") or "runs") / (config.get("run_name") or self.run_name)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; what fails says what is kept, and leaves no new folder without a checkpoint."""
        try:
            self._run_saying_what_is_full(subcommand)
        except BaseException as error:
            kept = self.ending.kept()
            if isinstance(error, Exception) and self.ending.signals.signum is None:
                if isinstance(error, MetalearnError):
                    error.args = ("; ".join([str(error), *filter(None, [kept])]),)
                elif kept:
                    print(f"metalearn: {kept}", file=sys.stderr)
                self.ending.clean()
            raise

    def _run_saying_what_is_full(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except ValueError as error:  # how many batches an epoch has, on how many processes, is known no earlier
            if isinstance(error, MetalearnError) or "`val_check_interval`" not in str(error):
                raise
            raise ConfigError(one_line(str(error))) from error
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            path = error.filename or folder(self.trainer)
            raise DataError(
                f"{path} cannot be written ({error.strerror}); {suggest_space(error)}, or write elsewhere with another "
                "trainer.default_root_dir"
            ) from error

    def after_instantiate_classes(self) -> None:
        """Give the model what it writes into its checkpoints: the run's name, its configuration, and its network's."""
        name = self._get(self.config_init, "run_name") or self.run_name
        self.run_name = name if is_name(name) else Path(name).name or self.run_name
        if not isinstance(self.model, ReportsOutcome):
            return
        model: Any = self.model
        config = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand]))
        if hasattr(model, "run_config"):
            model.run_config = yaml.safe_dump({key: config[key] for key in ("model", "data") if key in config})
        if hasattr(model, "run_name"):
            model.run_name = self.run_name
        backbone = config["model"].get("init_args", {}).get("backbone") or {}
        if getattr(model, "backbone_description", "") is None and "class_path" in backbone:
            model.backbone_description = {
                "class_path": backbone["class_path"],
                "init_args": {**backbone.get("init_args", {}), **backbone.get("dict_kwargs", {})},
            }

    def after_fit(self) -> None:
        """Test the best checkpoint, draw the pictures, print the summary."""
        if not getattr(self.trainer, "fast_dev_run", False):
            self._report(outcome.after_fit)

    def after_test(self) -> None:
        self._report(outcome.after_test)

    def after_validate(self) -> None:
        self._report(outcome.after_validate)

    def after_predict(self) -> None:
        self._report(outcome.after_predict)

    def _report(self, report: Callable[[outcome.FinishedRun], None]) -> None:
        """Print what a model offers that is a :class:`~metalearn.reports.outcome.ReportsOutcome`."""
        if isinstance(self.model, ReportsOutcome):
            wants_test = bool(self.config[self.subcommand].get("test_after_fit", True))
            trainer: Any = self.trainer
            report(
                outcome.FinishedRun(
                    self.run_name,
                    trainer,
                    self.model,
                    self.datamodule,
                    self.clock,
                    self.tasks,
                    self.predictions,
                    wants_test,
                )
            )


def _most_ways(ways: Any) -> int:
    """How many outputs a network needs for tasks of so many classes, or of so many at most."""
    return check_range("ways", ways, 2)[1]
