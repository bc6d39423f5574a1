"""What the inner loop may move in the place of a network's own tensors, and where these may start, one adapter a file."""

from metalearn.inner.adapters.base import PREFIX, Adapter, AdapterPart, Task
from metalearn.inner.adapters.choose import get_adapter
from metalearn.inner.adapters.context import Context
from metalearn.inner.adapters.heads import PrototypeHead, SharedHead
from metalearn.inner.adapters.lora import LoRA

__all__ = ["PREFIX", "Adapter", "AdapterPart", "Context", "LoRA", "PrototypeHead", "SharedHead", "Task", "get_adapter"]
