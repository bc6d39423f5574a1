"""Adapted models in ``.safetensors`` files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metalearn.errors import CheckpointError, on_one_line
from metalearn.reports.tables import write_atomically
from metalearn.shipping.checksum import find_checksum
from metalearn.shipping.description import Description

__all__ = ["read_adapted", "write_adapted"]

ENTRY, DIGEST = "metalearn", "sha256"
"""The names of our texts in the file's metadata."""


def write_adapted(path: Path, tensors: Mapping[str, Tensor], description: Description) -> Path:
    """Write tensors and their description, beside the place first and then there.

    Raises:
        DataError: the file cannot be written.
    """
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = description.to_json()
    return write_atomically(path, save(own, {ENTRY: text, DIGEST: find_checksum(own, text)}))


def read_adapted(path: str | Path) -> tuple[dict[str, Tensor], Description]:
    """Tensors on the CPU, and their description.

    Raises:
        CheckpointError: there is no such file, or it is damaged, or none of ours.
    """
    _check_file(path)
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = on_one_line(error)
        raise CheckpointError(
            f"adapted model {path} cannot be read ({reason}); use a file as AdaptedModel.save wrote it"
        ) from error
    if ENTRY not in texts:
        raise CheckpointError(
            f"adapted model {path} is a .safetensors file of something else; use a file as AdaptedModel.save wrote it"
        )
    description = Description.from_json(texts[ENTRY], path)
    if texts.get(DIGEST) != find_checksum(tensors, texts[ENTRY]):
        raise CheckpointError(
            f"adapted model {path} is damaged: its checksum is another; save it anew, or copy it again"
        )
    odd = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if odd:
        raise CheckpointError(f"adapted model {path} has entries of {odd[0]} that are not finite; adapt anew")
    return tensors, description


def _check_file(path: str | Path) -> None:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"adapted model {str(path)[:200]!r} cannot be opened ({getattr(error, 'strerror', None) or error}); name the file "
            "that AdaptedModel.save wrote"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"adapted model {path} is no file; name the one that AdaptedModel.save wrote")
