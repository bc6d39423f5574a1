"""What an episodic module writes into a checkpoint beside its weights, and what it checks before it takes them back."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from metalearn.carried import Entry, class_path, read_entry
from metalearn.errors import CheckpointError
from metalearn.modules.training.checkpoint import check_state, rename_old_keys, with_versions
from metalearn.modules.training.resuming import check_progress

__all__ = ["check_loss_is_given", "describe_module", "read_images", "restore_module"]


def describe_module(module: Any) -> dict[str, Any]:
    """The module in plain types, so that a checkpoint alone rebuilds it."""
    trainer = module._trainer
    entry = {
        "class_path": class_path(type(module)),
        "backbone": module.backbone_description,
        "image_spec": module.image_spec,
        "image_statistics": module.image_statistics,
        "config": module.run_config,
        "run": module.run_name,
    }
    if module.counts is not None:
        entry["oracles"] = module.counts.as_dict()
    if trainer is not None and trainer.world_size == 1:
        entry["rng"] = torch.get_rng_state()
    return entry


def read_images(module: Any) -> None:
    """Take note of how the trainer's data read their images, if they hold any."""
    data = getattr(module._trainer, "datamodule", None)
    spec = getattr(data, "image_spec", None)
    if spec is not None:
        module.image_spec = spec.to_dict()
        describe = getattr(data, "image_statistics", None)
        module.image_statistics = module.image_statistics if describe is None else describe()


def check_loss_is_given(named_loss: str | None, checkpoint: dict[str, Any]) -> None:
    """Raise if a checkpoint was made with a loss that it cannot hold, and the module has another.

    Raises:
        CheckpointError: it was.
    """
    arguments = checkpoint.get("hyper_parameters")
    if named_loss is None or not isinstance(arguments, dict):
        return
    if "inner_steps" in arguments and "loss" not in arguments:
        raise CheckpointError(
            f"the checkpoint was made with a loss given in Python, but this module has {named_loss!r}, with which it "
            "would adapt otherwise; pass loss= to load_from_checkpoint, or to the module"
        )


def restore_module(module: Any, checkpoint: dict[str, Any]) -> Entry:
    """Check the weights against the module before any of them is loaded, and take up what stands beside them."""
    rename_old_keys(module, checkpoint["state_dict"])
    check_state(module, checkpoint["state_dict"])
    checkpoint["state_dict"] = with_versions(module, checkpoint["state_dict"])
    check_progress(module, checkpoint)
    entry = read_entry(checkpoint)
    module.image_spec, module.image_statistics = entry.image_spec, entry.image_statistics
    trainer: L.Trainer | None = module._trainer
    resumes = trainer is not None and trainer.training and trainer.world_size == 1
    if resumes and entry.rng is not None:
        torch.set_rng_state(entry.rng)
    return entry
