"""Gradient-based meta-learning and bilevel optimisation on PyTorch Lightning."""

from metalearn.early_signals import end_quietly_on_signals

end_quietly_on_signals()  # before the imports that take long

from metalearn.backbones import MLP, Conv4, ResNet12
from metalearn.episode import Batch, Episode
from metalearn.errors import (
    BilevelError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    MemoryLimitError,
    MetalearnError,
    ShapeError,
)
from metalearn.inner import AdaptedModel
from metalearn.metrics import EpisodeAccuracy
from metalearn.modules import (
    ANIL,
    IMAML,
    MAML,
    AtomicCheckpointIO,
    BilevelFewShot,
    BilevelModule,
    HyperCleaning,
    MetaModule,
    Pooled,
    RegularizationTuning,
)

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "IMAML",
    "MAML",
    "MLP",
    "AdaptedModel",
    "AtomicCheckpointIO",
    "Batch",
    "BilevelError",
    "BilevelFewShot",
    "BilevelModule",
    "CheckpointError",
    "ConfigError",
    "Conv4",
    "DataError",
    "DivergenceError",
    "Episode",
    "EpisodeAccuracy",
    "HyperCleaning",
    "MemoryLimitError",
    "MetaModule",
    "MetalearnError",
    "Pooled",
    "RegularizationTuning",
    "ResNet12",
    "ShapeError",
]
