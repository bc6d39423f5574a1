"""A LightningModule of ours: parameters may be added early, and checkpoints of any version load without running their code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import lightning as L

from metalearn.modules.training.checkpoint import rename_old_keys
from metalearn.modules.training.eager import keep_eager
from metalearn.modules.training.loading import load_module
from metalearn.modules.training.resuming import check_before

__all__ = ["OwnModule"]

REGISTERED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""What ``torch.nn.Module.__init__`` would forget."""


class OwnModule(L.LightningModule):
    """Is a LightningModule from the moment it exists, so that a subclass may add parameters before ``super().__init__``.

    PyTorch refuses a parameter before ``Module.__init__``, and ``Module.__init__`` forgets what was registered before. So
    Lightning's own ``__init__`` runs in ``__new__``, and is not run again.
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        # up to Python 3.11.3 an inherited __new__ hides __init__ from inspect.signature
        cls.__signature__ = inspect.Signature(parameters)
        keep_eager(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the module with nothing registered yet."""
        module = super().__new__(cls)
        L.LightningModule.__init__(module)
        return module

    def __init__(self) -> None:
        """Leave what was registered since as it is, also where a subclass has another LightningModule among its bases."""
        bases = type(self).__mro__
        if bases[bases.index(OwnModule) + 1] is L.LightningModule:
            return
        early = {name: self.__dict__[name] for name in REGISTERED}
        super().__init__()
        for name, values in early.items():
            self.__dict__[name] = values | self.__dict__[name]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        rename_old_keys(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def check_checkpoint(self, checkpoint: dict[str, Any], trainer: L.Trainer, trains: bool) -> None:
        """Raise before anything is written if a run cannot go on from a checkpoint."""
        check_before(self, trainer, checkpoint, trains)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Any:
        """Build the module that a checkpoint holds.

        Args:
            checkpoint_path: a local file.
            map_location: where tensors go, as in ``torch.load``.
            hparams_file: as in Lightning.
            strict: as in Lightning.
            weights_only: nothing but plain types is ever loaded; ``False`` is refused.
            kwargs: arguments to override. ``backbone`` is needed if it is none of ours.

        Raises:
            CheckpointError: the file cannot be read, or is of another architecture.
        """
        return load_module(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, kwargs)
