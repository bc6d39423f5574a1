"""The errors that a user can cause. The command line prints each as one line and exits with code 2."""

from __future__ import annotations

import errno


class MetalearnError(Exception):
    """Base class: something the user can put right. The message names the value, the constraint and the remedy."""


class ConfigError(MetalearnError, ValueError):
    """An argument is outside the range in which it means anything."""


class ShapeError(MetalearnError, ValueError):
    """An episode or a label tensor has the wrong shape, dtype or range."""


class DataError(MetalearnError):
    """A data set is missing, truncated, foreign, or too small for the episodes that were asked for."""


class CheckpointError(MetalearnError):
    """A checkpoint cannot be read, or belongs to another architecture."""


class DivergenceError(MetalearnError, ArithmeticError):
    """The meta-loss or its gradient is not finite, or has exploded."""


class BilevelError(MetalearnError, ArithmeticError):
    """A bilevel problem breaks an assumption that its solver needs: curvature, dependence, or a tolerance not reached."""


class MemoryLimitError(MetalearnError, MemoryError):
    """The meta-gradient needs more memory than there is."""


FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}
"""What the system says where more space would do."""


def suggest_space(error: OSError) -> str:
    """What a user can do about a file that cannot be written."""
    return "free space there" if error.errno in FULL else "make its folder one that can be written"
