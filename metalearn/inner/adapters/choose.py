"""An adapter as a user or a checkpoint describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.checks import quote_value
from metalearn.errors import ConfigError
from metalearn.inner.adapters.base import Adapter
from metalearn.inner.adapters.context import Context
from metalearn.inner.adapters.heads import PrototypeHead, SharedHead
from metalearn.inner.adapters.lora import LoRA
from metalearn.inner.described import is_ours

__all__ = ["get_adapter"]

CLASSES: dict[str, type[Adapter]] = {kind.__name__: kind for kind in (LoRA, Context, SharedHead, PrototypeHead)}


def get_adapter(adapter: Adapter | Mapping[str, Any] | None) -> Adapter | None:
    """Build an adapter from its description; one that is built, or ``None``, is returned as it is.

    Raises:
        ConfigError: there is no adapter of that class.
    """
    if adapter is None or isinstance(adapter, Adapter):
        return adapter
    if isinstance(adapter, Mapping):
        spelled = str(adapter.get("class_path"))
        kind = CLASSES.get(spelled.rpartition(".")[2]) if is_ours(spelled) else None
        if kind is not None:
            return kind(**dict(adapter.get("init_args") or {}))
    if isinstance(adapter, type) and issubclass(adapter, Adapter):
        raise ConfigError(
            f"adapter is the class {adapter.__name__}, but it must be an instance; use adapter={adapter.__name__}(...)"
        )
    raise ConfigError(
        f"adapter is {quote_value(adapter)}, but it must be an instance of {', '.join(CLASSES)}; use adapter=LoRA(rank=4), or "
        "leave it out"
    )
