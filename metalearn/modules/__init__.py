"""The LightningModules, one public algorithm a file."""

from metalearn.modules.anil import ANIL
from metalearn.modules.base import MetaModule
from metalearn.modules.bilevel import BilevelModule
from metalearn.modules.checkpoint_io import AtomicCheckpointIO
from metalearn.modules.few_shot import BilevelFewShot
from metalearn.modules.hyper_cleaning import HyperCleaning
from metalearn.modules.imaml import IMAML
from metalearn.modules.maml import MAML
from metalearn.modules.pooled import Pooled
from metalearn.modules.regularization_tuning import RegularizationTuning

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
