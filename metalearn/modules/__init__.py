"""The LightningModules, one public algorithm a file."""

from metalearn.modules.anil import ANIL
from metalearn.modules.base import MetaModule
from metalearn.modules.maml import MAML
from metalearn.modules.pooled import Pooled

__all__ = ["ANIL", "MAML", "MetaModule", "Pooled"]
