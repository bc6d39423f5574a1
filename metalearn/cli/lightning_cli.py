"""LightningCLI for modules and data of ours and of users: ``python -m metalearn {fit,validate,test,predict}``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from metalearn.carried import read_checkpoint
from metalearn.checks import check_range
from metalearn.cli import outcome
from metalearn.cli.arguments import prepare_arguments
from metalearn.cli.arguments_log import ArgumentsLog
from metalearn.cli.command_help import TrainerHelp, show_command
from metalearn.cli.commands import LIGHTNING_COMMANDS, Call
from metalearn.cli.ending import Ending
from metalearn.cli.failures import translate_failures
from metalearn.cli.parser import Parser, find_own_error
from metalearn.cli.processes import check_devices, take_torchrun
from metalearn.cli.recorder import FolderIsTaken, RunRecorder
from metalearn.cli.run_callbacks import Advise, RunCallbacks, make_advisors
from metalearn.cli.run_files import NAMES
from metalearn.cli.run_loggers import join_loggers, log_pictures, name_loggers
from metalearn.cli.run_place import RunPlace
from metalearn.cli.screen import print_screen
from metalearn.cli.shipped import DEFAULT_CONFIG
from metalearn.cli.starting import begin
from metalearn.cli.trainer_checks import check_monitors, check_optimizer, check_run_name, check_trainer
from metalearn.cli.trainer_options import (
    check_finders,
    choose_plugins,
    contains_kind,
    saves_checkpoints,
    turn_off_for_barebones,
)
from metalearn.errors import ConfigError, MetalearnError
from metalearn.experiments.asked import read_words
from metalearn.modules.callbacks.run_folder import find_run_folder
from metalearn.modules.callbacks.run_log import RunLog
from metalearn.modules.callbacks.start import StartNotice
from metalearn.reports.outcome import ReportsOutcome
from metalearn.reports.summary import Summary

__all__ = ["MetaCLI", "run"]


def run(call: Call) -> Summary | None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, and return the summary on the first rank.

    Raises:
        MetalearnError: an argument, the data or a checkpoint is wrong, or training fails.
    """
    if {"-h", "--help"} & set(call.words):
        print_screen(show_command(next(word for word in call.words if word in LIGHTNING_COMMANDS)))
        return None
    last = call.words[-1]
    if last.endswith(".help") and last.count(".") > 1 and not last.startswith("--trainer."):
        raise ConfigError(f"{last} has no value, but it shows the arguments of a class; write {last} CLASS")
    call.ending = Ending(call.signals)
    with tempfile.TemporaryDirectory(prefix="metalearn-") as scratch:
        arguments, name = prepare_arguments(call.words, Path(scratch))
        return MetaCLI(arguments, name, call.ending, call.release_messages, call.words).summary


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` of a run: that of its training, whatever evaluates it later."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" or not (isinstance(trainer.logger, RunLog) and trainer.logger.evaluates):
            super().setup(trainer, pl_module, stage)


class MetaCLI(LightningCLI):
    """LightningCLI with our defaults: checkpoints by validation accuracy, tables, pictures and a summary.

    Attributes:
        summary: of the subcommand, once it has ended; ``None`` on all ranks but the first.
    """

    def __init__(
        self,
        args: Sequence[str],
        run_name: str,
        ending: Ending | None = None,
        release_messages: Callable[[], None] = lambda: None,
        words: Sequence[str] | None = None,
    ) -> None:
        self.run_name = self.config_name = run_name
        self.asked = read_words(args if words is None else words, LIGHTNING_COMMANDS, DEFAULT_CONFIG)
        self.summary: Summary | None = None
        self.callbacks = RunCallbacks(StartNotice(release_messages))
        self.arguments_log = ArgumentsLog()
        self.ending = ending or Ending()
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            load_from_checkpoint_support=False,
            args=list(args),
        )

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Let evaluations show our summary, and Lightning's table of all that was logged where it is asked for."""
        super().setup_parser(*args, **kwargs)
        for command in ("validate", "test"):
            self._subcommand_parsers[command].set_defaults(verbose=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.init_args.ways", "model.init_args.backbone.init_args.ways", compute_fn=most_ways)
        parser.add_argument("--test_after_fit", type=bool, default=True)
        parser.add_argument("--run_name", type=str, default=None)
        parser.add_argument("--start_from", type=str, default=None)
        parser.add_argument("--advise", type=Advise, default=False)
        parser.add_argument("--trainer.help", action=TrainerHelp)

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
        self.place = RunPlace(str(self.subcommand), self.config[self.subcommand], self.run_name, self.checkpoint)
        self.place.find_checkpoint()
        self.checkpoint = self.place.checkpoint
        self.run_log = self.place.make_logger()
        options = self.config[self.subcommand]["trainer"]
        asked = options.get("logger")
        options["logger"] = name_loggers(asked, self.run_log)
        with translate_failures(lambda: Path(self.run_log.log_dir)):
            try:
                super().instantiate_classes()
            except Exception as error:
                raise find_own_error(error) from error
        options["logger"] = asked  # so that config.yaml names no run: another one may begin from it
        trainer: Any = self.trainer
        check_monitors(trainer.callbacks, self.model)
        if self.subcommand == "fit" and isinstance(self.model, ReportsOutcome):
            check_optimizer(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add what saves, logs, shows and ends a run, where the user names nothing else."""
        asked = self._get(self.config_init, "trainer")
        command = str(self.subcommand)
        if asked.get("logger") is not False and "logger" not in kwargs and not asked.get("barebones"):
            kwargs["logger"] = join_loggers(asked.get("logger"), self.run_log)
        kwargs.update(take_torchrun(asked), **turn_off_for_barebones(asked))
        kwargs["plugins"] = choose_plugins(asked)
        logs_arguments = asked.get("enable_autolog_hparams", True) and not asked.get("barebones")
        kwargs["enable_autolog_hparams"] = False  # the arguments' own log is whole
        # asked before the Trainer adds its own to this list
        names_saver = contains_kind(asked.get("callbacks"), ModelCheckpoint)
        trainer: Any = super().instantiate_trainer(**kwargs)
        check_devices(trainer)
        check_finders(trainer.callbacks, self.model, self.datamodule)
        trainer.callbacks = self.callbacks.join(
            [
                *trainer.callbacks,
                *make_advisors(self._get(self.config, "advise"), command, trainer.callbacks, self.model),
            ],
            self.model,
            command,
            self.ending.signals,
            saves=saves_checkpoints(asked),
            names_saver=names_saver,
        )
        self.recorder = RunRecorder(
            self.asked, self.place.choose_name(), self.config_init[command].get("seed_everything")
        )
        trainer.callbacks[:0] = [self.recorder, *([self.arguments_log] if logs_arguments else [])]
        new = Path(trainer.logger.log_dir) if isinstance(trainer.logger, RunLog) and not trainer.fast_dev_run else None
        self.ending.follow(trainer, None if new is None or new.exists() else new)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; what fails says what is kept, and leaves no new folder without a checkpoint."""
        try:
            with translate_failures(lambda: find_run_folder(self.trainer)):
                super()._run_subcommand(subcommand)
                self.recorder.finish(self.summary.as_dict() if self.summary is not None else None)
        except FolderIsTaken:
            raise
        except BaseException as error:
            self.recorder.fail(error, interrupted=self.ending.signals.signum is not None)
            kept = self.ending.describe_kept()
            if isinstance(error, Exception) and self.ending.signals.signum is None:
                if isinstance(error, MetalearnError):
                    error.args = ("; ".join([str(error), *filter(None, [kept])]),)
                elif kept:
                    print(f"metalearn: {kept}", file=sys.stderr)
                self.ending.clean()
            raise

    def after_instantiate_classes(self) -> None:
        """Give the model the weights that it starts from, and what it writes into its checkpoints: the run's name, its
        configuration, and its network's."""
        begin(self.model, str(self.subcommand), self.config[self.subcommand])
        self.run_name = self.place.choose_name()
        dump = partial(self._parser(self.subcommand).dump, self.config[self.subcommand])
        self.arguments_log.choose(yaml.safe_load(dump(skip_none=False)))
        if not isinstance(self.model, ReportsOutcome):
            return
        model: Any = self.model
        config = yaml.safe_load(dump())
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
        """Test the best checkpoint and draw the pictures; a quick try of the code tests and draws nothing."""
        quick = getattr(self.trainer, "fast_dev_run", False)
        self._report(outcome.after_try if quick else outcome.after_fit)

    def after_test(self) -> None:
        self._report(outcome.after_test)

    def after_validate(self) -> None:
        self._report(outcome.after_validate)

    def after_predict(self) -> None:
        self._report(outcome.after_predict)

    def _report(self, report: Callable[[outcome.FinishedRun], Summary | None]) -> None:
        self.summary = report(
            outcome.FinishedRun(
                command=str(self.subcommand),
                name=self.run_name,
                config=self.config_name,
                trainer=self.trainer,
                model=self.model,
                data=self.datamodule,
                clock=self.callbacks.clock,
                tasks=self.callbacks.tasks,
                predictions=self.callbacks.predictions,
                test_after_fit=bool(self.config[self.subcommand].get("test_after_fit", True)),
            )
        )
        if self.summary is not None:
            pictures = [Path(path) for path in self.summary.as_dict().get("pictures", [])]
            log_pictures(self.trainer.loggers, pictures, self.trainer.global_step)


def most_ways(ways: Any) -> int:
    """How many outputs a network needs for tasks of so many classes, or of so many at most."""
    return check_range("ways", ways, 2)[1]
