"""When a run writes its checkpoints: the best one after a validation, the last one so that no step is lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from metalearn.errors import CheckpointError
from metalearn.modules.callbacks.run_folder import find_run_folder

__all__ = ["BestCheckpoint", "LastCheckpoint"]


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: the state with the best validation metric.

    Args:
        monitor: the metric.
        mode: ``"min"`` or ``"max"``.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    @property
    def state_key(self) -> str:
        """That of the class it is, so that checkpoints from before it had a class of its own are taken up."""
        return super().state_key.replace(type(self).__name__, ModelCheckpoint.__name__, 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save nothing in a run that does not validate, rather than warn of it: the last state is saved."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far where its file lies in this run's folder, wherever that has moved to since."""
        best = state_dict.get("best_model_path")
        path = str(Path(self.dirpath or "") / Path(best).name) if best else ""
        if path and Path(path).is_file():
            score = state_dict["best_model_score"]
            super().load_state_dict(
                {**state_dict, "dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path,
                 "best_k_models": {path: score}, "kth_value": score}
            )  # fmt: skip


class LastCheckpoint(Checkpoint):
    """``last.ckpt``: the state to go on from. Written every so many steps, before a validation, and when training ends.

    Args:
        every: outer steps between two of them.

    Attributes:
        path: the file, once a run has begun.
        step: the outer steps in it, 0 before the first one.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self.path: Path | None = None
        self.step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, BestCheckpoint)]
            where = find_run_folder(trainer)
            self.path = (
                Path(savers[0].dirpath) / "last.ckpt"
                if savers and savers[0].dirpath
                else where / "checkpoints/last.ckpt"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step  # what a resumed run has come from is there already

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save here rather than at the end: only the state after a batch goes on in the middle of an epoch exactly."""
        step = trainer.global_step
        if step % self.every == 0 or _ends(trainer) or _validates(trainer):
            self.save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep what there is of a run that fails before anything was saved. Other ranks would not come to it."""
        unsaved = self.path is not None and not self.path.is_file() and trainer.state.fn == "fit"
        if unsaved and trainer.world_size == 1 and not isinstance(exception, CheckpointError):
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the state, unless this step's is there; called on all ranks."""
        if self.path is not None and trainer.global_step != self.step and not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(self.path, weights_only=False)
            self.step = trainer.global_step


def _ends(trainer: L.Trainer) -> bool:
    return trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step


def _validates(trainer: L.Trainer) -> bool:
    """Whether a validation may come after this batch; where that is not known, the state is saved as it begins."""
    batches = trainer.val_check_batch
    loop: Any = trainer.fit_loop.epoch_loop
    if loop.batch_progress.is_last_batch:
        return True
    if batches is None or not math.isfinite(batches):
        return False
    number = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    return bool((number + 1) % batches == 0)
