"""What a run meets while it runs and a user can put right, as errors of ours."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metalearn.errors import ConfigError, DataError, MetalearnError, suggest_space
from metalearn.reports.text import join_lines

__all__ = ["translate_failures"]

TRACKERS = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
"""Packages of experiment trackers."""
UNWRITABLE = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EIO", "ENAMETOOLONG")
}
"""Reasons why a file of a run cannot be written."""


@contextmanager
def translate_failures(find_folder: Callable[[], Path]) -> Iterator[None]:
    """Run the block.

    Args:
        find_folder: gives the run's folder, for a system's error that names no file.

    Raises:
        ConfigError: the run has fewer batches than ``val_check_interval`` asks for.
            An experiment tracker refuses what it is asked for.
        DataError: a file of the run cannot be written.
    """
    try:
        yield
    except ValueError as error:  # how many batches an epoch has, on how many processes, is known no earlier
        if isinstance(error, MetalearnError) or "`val_check_interval`" not in str(error):
            raise
        raise ConfigError(join_lines(str(error))) from error
    except OSError as error:
        if isinstance(error, MetalearnError) or error.errno not in UNWRITABLE:
            raise
        path = error.filename or find_folder()
        raise DataError(
            f"{path} cannot be written ({error.strerror}); {suggest_space(error)}, or write elsewhere with another "
            "trainer.default_root_dir"
        ) from error
    except Exception as error:
        tracker = TRACKERS.get(type(error).__module__.split(".")[0])
        if tracker is None:
            raise
        reason = join_lines(str(error)).rstrip(".")
        raise ConfigError(
            f"{tracker} cannot be used: {reason}; correct the options of trainer.logger, or leave it out"
        ) from error
