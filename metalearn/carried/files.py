"""A checkpoint file as plain types and tensors: nothing in it is run, and it takes no more memory than it has bytes."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor, nn

from metalearn.carried.shipped import checkpoint_path, shipped_checkpoints
from metalearn.checks import find_nearest
from metalearn.errors import CheckpointError

__all__ = ["is_extra_state", "read_checkpoint", "read_file"]

MOST_PICKLE = 1 << 24
"""Bytes of the pickle that describes the tensors; a thousand tensors take some 200 KB."""
MOST_ENTRIES = 1 << 23
"""Bytes of the archive's table of contents."""
MOST_NODES = 1_000_000
DEEPEST = 64
SHARING = 4
"""How often a file's bytes may be shared by tensors: tied weights are in a file once."""
SECTIONS: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict, "hyper_parameters": dict, "loops": dict, "callbacks": dict, "optimizer_states": list,
    "lr_schedulers": list, "epoch": int, "global_step": int,
}  # fmt: skip


def is_extra_state(name: str) -> bool:
    """Whether a state-dict key holds what a layer's own ``get_extra_state`` gives: any plain type."""
    return name.rpartition(".")[2] == "_extra_state"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint, a file or a shipped one by its name; its tensors are on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or holds more than plain types; or it claims to be
            larger than it is.
    """
    return read_file(path)[0]


def read_file(path: str | Path) -> tuple[dict[str, Any], set[str]]:
    """As :func:`read_checkpoint`, and the names of the devices that the tensors were saved from."""
    path = checkpoint_path(path)
    size = _check_file(path)
    _check_container(path, size)
    devices: set[str] = set()

    def stay(storage: Any, device: str) -> Any:
        devices.add(device)
        return storage

    try:
        # mapped, since tensors are then views of the file: one that claims more than there is fails, and takes no memory
        contents = torch.load(path, map_location=stay, weights_only=True, mmap=True)
    except Exception as error:  # what a damaged pickle raises is any of a dozen classes
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise _unreadable(path, reason) from error
    contents = _Copy(path, SHARING * size + (1 << 20)).take(contents)
    _check_sections(contents, path)
    return contents, devices


def _check_file(path: str | Path) -> int:
    """The size of a regular file."""
    text = os.fspath(path)
    if not text:
        raise CheckpointError(
            "the checkpoint's path is empty; name a file such as runs/NAME/version_0/checkpoints/best.ckpt"
        )
    if "://" in text:
        raise CheckpointError(f"checkpoint {text} is remote, and remote files are not loaded; download it first")
    try:
        status = os.stat(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        near = find_nearest(text, list(shipped_checkpoints()), 1)
        remedy = f"did you mean {near[0]}?" if near else "the summary of a fit names the one that it wrote"
        raise CheckpointError(f"checkpoint {text} does not exist; {remedy}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {text[:200]!r} cannot be opened ({error}); use another file") from error
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"checkpoint {text} is a folder; name a file in it, such as checkpoints/best.ckpt")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would be waited for, or have no end
        raise CheckpointError(f"checkpoint {text} is no regular file; copy it to one")
    return status.st_size


def _check_container(path: str | Path, size: int) -> None:
    """Raise unless the file is an archive as torch writes it: nothing compressed, nothing before it, nothing after it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(size - 98, 0))
            if _find_table(file.read(), size) > MOST_ENTRIES:
                raise zipfile.BadZipFile("its table of contents is too long")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error}); use another file") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, IndexError) as error:
        raise _unreadable(path, str(error)) from error
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise _unreadable(path, "its entries are compressed, which torch never does")
    if sum(entry.file_size for entry in entries) > size:
        raise _unreadable(path, "its entries claim to be larger than the file")
    described = (entry for entry in entries if "/data/" not in entry.filename or entry.filename.endswith(".pkl"))
    if any(entry.file_size > MOST_PICKLE for entry in described):
        raise _unreadable(path, "its description is too long")


def _find_table(tail: bytes, size: int) -> int:
    """The length of the archive's table of contents, on whose place all readers of archives must agree.

    Args:
        tail: the last 98 bytes of the file: the records at the end of an archive without a comment.
        size: of the file.
    """
    if len(tail) < 98 or tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise zipfile.BadZipFile("it does not end as an archive of torch.save does")
    length, start = struct.unpack("<LL", tail[-10:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":
        (record,) = struct.unpack("<Q", tail[-34:-26])
        if record != size - 98 or tail[-98:-94] != b"PK\x06\x06":
            raise zipfile.BadZipFile("its last records disagree")
        length, start = struct.unpack("<QQ", tail[-58:-42])
        end = size - 98
    if start + length != end:
        raise zipfile.BadZipFile("its table of contents is not where it should be")
    return length


class _Copy:
    """Copies a tree of plain types, whose tensors may be views of the file, within a bound on its size."""

    def __init__(self, path: str | Path, most: int) -> None:
        self.path, self.most, self.nodes = path, most, MOST_NODES

    def take(self, value: Any, depth: int = 0) -> Any:
        self.nodes -= 1
        if self.nodes < 0 or depth > DEEPEST:
            raise _unreadable(self.path, "its contents are nested without end")
        if isinstance(value, Tensor):
            return self._own(value)
        if isinstance(value, dict):
            return {self.take(key, depth + 1): self.take(entry, depth + 1) for key, entry in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self.take(entry, depth + 1) for entry in value)
        return value

    def _own(self, value: Tensor) -> Tensor:
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
            raise _unreadable(self.path, f"it holds a tensor of the kind {type(value).__name__}, {value.layout}")
        self.most -= value.numel() * value.element_size()
        if value.is_quantized or self.most < 0:
            raise _unreadable(self.path, f"a tensor claims the shape {list(value.shape)}, more than the file holds")
        return value.detach().clone()


def _check_sections(contents: Any, path: str | Path) -> None:
    if not isinstance(contents, dict) or "state_dict" not in contents:
        raise CheckpointError(
            f"checkpoint {path} has no state_dict, so it is no Lightning checkpoint; use a run's best.ckpt"
        )
    for name, kind in SECTIONS.items():
        if name in contents and (not isinstance(contents[name], kind) or isinstance(contents[name], bool)):
            raise _damaged(path, f"its {name} is a {type(contents[name]).__name__}")
    for name, parts in (("loops", dict), ("callbacks", dict), ("optimizer_states", list), ("lr_schedulers", list)):
        within = contents.get(name, parts())
        odd = [part for part in (within.values() if parts is dict else within) if not isinstance(part, dict)]
        if odd or (parts is dict and not all(isinstance(part, str) for part in within)):
            raise _damaged(path, f"its {name} have {type(odd[0]).__name__ if odd else 'a name'} where a run has a dict")
    for name in ("epoch", "global_step"):
        if not 0 <= contents.get(name, 0) < 1 << 62:
            raise _damaged(path, f"its {name} is {str(contents[name])[:40]}")
    for name, value in contents["state_dict"].items():
        if not isinstance(name, str) or not (isinstance(value, Tensor) or is_extra_state(name)):
            raise _damaged(path, f"its state_dict has {str(name)[:80]!r} of the type {type(value).__name__}")
    if any(not isinstance(name, str) for name in contents):
        raise _damaged(path, "one of its names is no text")
    version_text = contents.get("pytorch-lightning_version")
    try:
        written = Version(version_text) if isinstance(version_text, str) and len(version_text) < 100 else None
    except InvalidVersion:
        written = None
    if written is None:
        raise _damaged(path, f"its pytorch-lightning_version is {str(version_text)[:40]!r}")
    here = Version(version("lightning"))
    if written.major != here.major:
        raise CheckpointError(
            f"checkpoint {path} is of Lightning {written}, but here is {here}, which cannot read it; install lightning=={written}"
        )


def _unreadable(path: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} cannot be read as plain tensors ({reason}); it is truncated, foreign or unsafe: use the last.ckpt or "
        "best.ckpt of a run"
    )


def _damaged(path: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged or foreign ({reason}); use the last.ckpt or best.ckpt of a run"
    )
