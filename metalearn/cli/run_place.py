"""Where a command reads and writes a run: a new folder, or that of the run whose checkpoint it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.carried import is_name, read_checkpoint
from metalearn.carried.shipped import checkpoint_path
from metalearn.cli.run_files import NAMES, find_checkpoint, find_run_of
from metalearn.modules.callbacks.run_log import RunLog

__all__ = ["RunPlace"]


@dataclass
class RunPlace:
    """The place of one run.

    Attributes:
        command: the subcommand.
        options: of the subcommand, parsed.
        name: of the run, as the config or the checkpoint says it.
        checkpoint: what the run starts from, once it is read.
    """

    command: str
    options: Any
    name: str
    checkpoint: dict[str, Any] | None = None

    @property
    def runs(self) -> Path:
        """The folder of the runs of this name."""
        root = self.options["trainer"].get("default_root_dir") or "runs"
        return Path(root) / (self.options.get("run_name") or self.name)

    def find_checkpoint(self) -> None:
        """Make a path of ``last`` and ``best``, which Lightning would look for in the folder of the new run, and of a name."""
        asked = self.options.get("ckpt_path")
        if asked in NAMES:
            path = str(find_checkpoint(asked, self.runs, self.command == "fit"))
            self.options["ckpt_path"] = path
            self.checkpoint = read_checkpoint(path)
        elif asked is not None:
            self.options["ckpt_path"] = checkpoint_path(asked)

    def make_logger(self) -> RunLog:
        """Write into the run that the checkpoint is from, unless the user names another place."""
        elsewhere = self.options.get("run_name") or self.options["trainer"].get("default_root_dir")
        checkpoint = self.options.get("ckpt_path")
        folder = find_run_of(checkpoint) if checkpoint else None
        if folder is None or (elsewhere and folder.parent != self.runs):
            return RunLog(str(self.runs.parent), self.runs.name)
        self.name = folder.parent.name or self.name
        step = int((self.checkpoint or {}).get("global_step", 0))
        return RunLog(str(folder.parent.parent), folder.parent.name, folder.name, self.command != "fit", step)

    def choose_name(self) -> str:
        """What the run is called in titles and checkpoints: one folder's name."""
        name = self.options.get("run_name") or self.name
        return name if is_name(name) else Path(name).name or self.name
