"""How much memory of a device is free, and whether an error says that there is none."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from metalearn.errors import ConfigError, MetalearnError

__all__ = ["is_out_of_memory", "read_free_memory"]

SIGNS = ("not enough memory", "allocate memory")
"""What torch says where memory of a CPU runs out, which is no ``OutOfMemoryError``."""

MEMORY_INFO = Path("/proc/meminfo")
PROCESS_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's or Python's own word that memory has run out; what this package says of it is not."""
    if isinstance(error, MetalearnError):
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def read_free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device.

    On a CPU that is what the system can hand out without swapping, less where the control group of the process has less left.
    Processes of one machine that train together share it evenly. On a GPU it is what the driver has left, and what torch's
    allocator holds unused.

    Raises:
        ConfigError: the system does not tell.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type != "cpu" or not MEMORY_INFO.exists():
        raise ConfigError(
            f"memory_limit is set, but how much memory is free is not known on {device.type} here; use tasks_at_once, and "
            "memory_limit=None"
        )
    lines = (line.split() for line in MEMORY_INFO.read_text().splitlines())
    available = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    return min([available, *_read_group_limits()]) // _count_neighbours()


def _read_group_limits() -> list[int]:
    """What the control groups that hold this process have left (version 2, and the memory controller of version 1)."""
    left: list[int] = []
    lines = PROCESS_GROUPS.read_text().splitlines() if PROCESS_GROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = GROUPS / controllers
        names = (
            ("memory.max", "memory.current")
            if controllers == ""
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = root / path.lstrip("/")
        for group in (
            folder,
            *folder.parents,
        ):  # a group has no more than those around it; in a container the path may be cut
            limit, used = (_read_number(group / name) for name in names)
            if limit is not None and used is not None:
                left.append(max(limit - used + _read_cached_files(group), 0))
            if group == root:
                break
    return left


def _read_cached_files(group: Path) -> int:
    """Bytes of files that a control group keeps in memory and has not looked at of late: they are given up when asked for."""
    try:
        lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))


def _read_number(path: Path) -> int | None:
    """The number in a file; ``None`` where there is none, or no bound."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _count_neighbours() -> int:
    """The processes of this machine that train together, this one counted."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", torch.distributed.get_world_size())), 1)
