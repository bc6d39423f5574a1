"""What a run came from: versions, git commits, the machine, and the process, all read without torch."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe_origin", "describe_process", "is_alive", "read_commit"]

PACKAGES = ("metalearn-lightning", "torch", "lightning", "torchmetrics", "numpy")
SETTINGS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG")
"""Variables of the environment that change numbers or speed, beside those that begin with METALEARN_."""
PATIENCE = 5.0
"""Seconds that git may take."""


def describe_origin() -> dict[str, Any]:
    """Versions, commits, machine, settings of the environment and working folder, as plain data."""
    return {
        "working_folder": os.getcwd(),
        "versions": read_versions(),
        "commit": read_commit(Path(__file__).parent, Path(__file__)),
        "working_commit": read_commit(Path.cwd()),
        "machine": describe_machine(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in SETTINGS or name.startswith("METALEARN_")
        },
    }


def read_versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def read_commit(folder: Path, tracked: Path | None = None) -> dict[str, Any] | None:
    """The commit that a folder's repository is at.

    Args:
        folder: in the repository.
        tracked: a file that the repository must know; another project's repository may hold the folder.

    Returns:
        ``hash``, and whether it is ``dirty``: files that git knows have changed (``None`` where git took too long). ``None``
        outside of a repository, or without git.
    """
    if tracked is not None and _ask_git(folder, "ls-files", "--error-unmatch", "--", str(tracked)) is None:
        return None
    head = _ask_git(folder, "rev-parse", "--verify", "HEAD")
    if head is None:
        return None
    changed = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"hash": head.strip(), "dirty": None if changed is None else bool(changed.strip())}


def _ask_git(folder: Path, *words: str) -> str | None:
    """What git answers; ``None`` where it cannot. It may neither ask for a password nor run what the repository names."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # a hook's, of another repository
        environment.pop(name, None)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, env=environment, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def describe_machine() -> dict[str, Any]:
    """The system, the processor, and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"system": f"{platform.system()} {platform.release()}", "cpu": _name_processor(), "cores": cores}


def _name_processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_process(pid: int | None = None) -> dict[str, Any]:
    """What tells this process, or another of this host, from all others: the host, the number, and when it began."""
    pid = os.getpid() if pid is None else pid
    return {"host": socket.gethostname(), "pid": pid, "begun": _read_beginning(pid)}


def is_alive(process: Any) -> bool:
    """Whether a process of :func:`describe_process` runs on this host."""
    if not isinstance(process, dict) or process.get("host") != socket.gethostname():
        return False
    pid = process.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
        return False
    if sys.platform == "win32":  # there, signal 0 would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return bool(process.get("begun") == _read_beginning(pid))


def _read_beginning(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; ``None`` where the system does not say."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return None
