"""The loggers that a user names, beside the run's own: they get its name and version, its arguments and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from metalearn.modules.callbacks.run_log import RunLog

__all__ = ["join_loggers", "log_pictures", "name_loggers"]

DEFAULTS = ("lightning_logs", None)
"""What Lightning calls a run of which nothing is said."""


def name_loggers(asked: Any, log: RunLog) -> Any:
    """The loggers that are asked for, with the run's name and version where the user gives none.

    TensorBoard's files then lie in ``SAVE_DIR/NAME/version_N``, which is the run's own folder for its own ``SAVE_DIR``.

    Args:
        asked: the option ``trainer.logger`` as it was parsed: one logger or a list, each with ``class_path`` and ``init_args``.
        log: the run's own.
    """
    asked, version = deepcopy(asked), Path(log.log_dir).name
    for logger in asked if isinstance(asked, list) else [asked]:
        kind = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        arguments = getattr(logger, "init_args", None)
        if arguments is None:
            continue
        if kind == "TensorBoardLogger" and arguments.get("name") in DEFAULTS and arguments.get("version") is None:
            arguments["name"], arguments["version"] = log.name, version
        elif kind == "WandbLogger":
            arguments["name"] = arguments.get("name") or f"{log.name}/{version}"
            arguments["save_dir"] = log.log_dir if arguments.get("save_dir") in (".", None) else arguments["save_dir"]
        elif kind == "MLFlowLogger":
            arguments["run_name"] = arguments.get("run_name") or f"{log.name}/{version}"
    return asked


def join_loggers(asked: Any, log: RunLog) -> list[Logger]:
    """The run's own logger and those that are asked for; a CSV logger that stands first takes the own one's place."""
    loggers = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    loggers = [logger for logger in loggers if isinstance(logger, Logger)]
    return loggers if any(isinstance(logger, CSVLogger) for logger in loggers[:1]) else [log, *loggers]


def log_pictures(loggers: Sequence[Logger], paths: Sequence[Path], step: int) -> None:
    """Give pictures to loggers that take images; called on the first process alone.

    Args:
        loggers: those of a run.
        paths: PNG files.
        step: the outer step that they show.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for path in paths:
                logger.log_image(path.stem, [str(path)])
        elif isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            for path in paths:
                logger.experiment.log_artifact(logger.run_id, str(path), "pictures")
        elif isinstance(logger, TensorBoardLogger):
            for path in paths:
                pixels = np.asarray(Image.open(path).convert("RGB"))
                logger.experiment.add_image(path.stem, pixels, step, dataformats="HWC")
            logger.experiment.flush()
