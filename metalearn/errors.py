"""The errors that a user can cause. The command line prints each as one line and exits with code 2."""

from __future__ import annotations

import errno


class MetalearnError(Exception):
    """Base class: something the user can put right. The message names the value, the constraint and the remedy.

    Example:
        >>> from metalearn import MAML, MLP, MetalearnError
        >>> try:
        ...     MAML(MLP(), inner_steps=0)
        ... except MetalearnError as error:
        ...     print(type(error).__name__)
        ConfigError
    """


class ConfigError(MetalearnError, ValueError):
    """An argument is outside the range in which it means anything.

    Example:
        >>> from metalearn import MLP, ConfigError
        >>> try:
        ...     MLP(outputs=0)
        ... except ConfigError as error:
        ...     print(error)
        outputs is 0, but it must be a whole number, at least 1; use outputs=1
    """


class ShapeError(MetalearnError, ValueError):
    """An episode or a label tensor has the wrong shape, dtype or range.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, ShapeError
        >>> try:
        ...     MAML(MLP()).adapt(Batch(torch.zeros(3, 1), torch.zeros(2)))
        ... except ShapeError as error:
        ...     print(str(error).split(", but")[0])
        support: x has shape [3, 1] and y [2]
    """


class DataError(MetalearnError):
    """A data set is missing, truncated, foreign, or too small for the episodes that were asked for.

    Example:
        >>> from metalearn import DataError
        >>> from metalearn.datamodules import ImageFolderEpisodes
        >>> try:
        ...     ImageFolderEpisodes("no/such/folder").prepare_data()
        ... except DataError as error:
        ...     print(error)
        root no/such/folder is not a folder; set data.root to the folder that holds a folder per class
    """


class CheckpointError(MetalearnError):
    """A checkpoint cannot be read, or belongs to another architecture.

    Example:
        >>> from metalearn import CheckpointError
        >>> from metalearn.image_classifier import load_module
        >>> try:
        ...     load_module("no/such.ckpt")
        ... except CheckpointError as error:
        ...     print(error)
        checkpoint no/such.ckpt does not exist; the summary of a fit names the one that it wrote
    """


class DivergenceError(MetalearnError, ArithmeticError):
    """The meta-loss or its gradient is not finite, or has exploded.

    Example:
        >>> import torch
        >>> from metalearn import DivergenceError
        >>> from metalearn.bilevel import GradientDescent
        >>> solver = GradientDescent(step_size=3.0, steps=200)  # of y^2/2, which needs less than 2
        >>> try:
        ...     solver.solve(lambda y, step: y, torch.ones(1))
        ... except DivergenceError as error:
        ...     print(str(error).split(";")[0])
        y is not finite at inner step 127, but all entries must be
    """


class BilevelError(MetalearnError, ArithmeticError):
    """A bilevel problem breaks an assumption that its solver needs: curvature, dependence, or a tolerance not reached.

    Example:
        >>> import torch
        >>> from metalearn import BilevelError
        >>> from metalearn.bilevel import CG
        >>> try:
        ...     CG(iterations=2).solve(lambda v: -v, torch.ones(2))
        ... except BilevelError as error:
        ...     print(str(error).split(";")[0])
        CG met the curvature -1 in inner_loss, but it must be strongly convex in y
    """


class MemoryLimitError(MetalearnError, MemoryError):
    """Not even a single task at a time fits into memory.

    Example:
        >>> from metalearn import MemoryLimitError, MetalearnError
        >>> issubclass(MemoryLimitError, (MetalearnError, MemoryError))
        True
    """


FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}
"""What the system says where more space would do."""


def suggest_space(error: OSError) -> str:
    """What a user can do about a file that cannot be written."""
    return "free space there" if error.errno in FULL else "make its folder one that can be written"


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, as a part of a line of ours; its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200].rstrip(".")


def on_one_line(error: BaseException) -> str:
    """The beginning of all that an error says, without its line breaks; its class where it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__
