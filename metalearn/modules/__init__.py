"""The LightningModules, one public algorithm a file."""

from metalearn.modules.anil import ANIL
from metalearn.modules.bilevel import BilevelModule
from metalearn.modules.bilevel_few_shot import BilevelFewShot
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.hyper_cleaning import HyperCleaning
from metalearn.modules.imaml import IMAML
from metalearn.modules.maml import MAML
from metalearn.modules.pooled import Pooled
from metalearn.modules.regularization_tuning import RegularizationTuning
from metalearn.modules.training.checkpoint_io import AtomicCheckpointIO

__all__ = [
    "ANIL",
    "IMAML",
    "MAML",
    "AtomicCheckpointIO",
    "BilevelFewShot",
    "BilevelModule",
    "HyperCleaning",
    "MetaModule",
    "Pooled",
    "RegularizationTuning",
]
