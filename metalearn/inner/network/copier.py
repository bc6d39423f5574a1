"""Copies of a network's layers, and of whatever holds layers, over the same tensors."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from metalearn.inner.network.layers import HOOKS

__all__ = ["Copier", "Replace"]

Replace = Callable[[str, nn.Module], nn.Module | None]
"""``replace(name, layer)`` gives the layer that stands for it in the copy, or ``None`` for a plain copy."""

_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_FOREIGN = ("torch.", "lightning.", "pytorch_lightning.", "builtins")
"""Objects of these packages that are no containers hold no layers of a network (a trainer holds the whole run)."""


class Copier:
    """Copies modules, and what holds modules, at whatever depth; everything else is shared.

    Attributes:
        made: the copy of every module, by the identity of the module.
    """

    def __init__(self, names: dict[int, str], replace: Replace) -> None:
        self.made: dict[int, nn.Module] = {}
        self._others: dict[int, Any] = {}
        self._names, self._replace = names, replace

    def copy(self, value: Any) -> Any:
        """The copy of ``value``, or itself if no module can be reached from it."""
        if isinstance(value, nn.Module):
            return self._module(value)
        if id(value) in self._others:
            return self._others[id(value)]
        return self._holder(value) if _reaches_module(value, set()) else value

    def _module(self, module: nn.Module) -> nn.Module:
        if id(module) in self.made:
            return self.made[id(module)]
        own = self._replace(self._names.get(id(module), ""), module)
        if own is not None:
            self.made[id(module)] = own
            return own
        own = self.made[id(module)] = object.__new__(type(module))
        for key, value in list(module.__dict__.items()):
            if key in ("_parameters", "_buffers") or key in HOOKS:
                own.__dict__[key] = value.copy()
            elif key == "_modules":
                own.__dict__[key] = type(value)((name, self.copy(child)) for name, child in value.items())
            elif key == "_compiled_call_impl":
                own.__dict__[key] = None
            else:
                own.__dict__[key] = self.copy(value)
        return own

    def _holder(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.copy(value.__self__))
        if isinstance(value, functools.partial):
            keywords = {key: self.copy(item) for key, item in value.keywords.items()}
            return functools.partial(self.copy(value.func), *map(self.copy, value.args), **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, tuple):
            items = map(self.copy, value)
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, frozenset):
            return frozenset(map(self.copy, value))
        own = self._others[id(value)] = copy.copy(value)
        if isinstance(value, dict):
            own.update((key, self.copy(item)) for key, item in value.items())
        elif isinstance(value, (list, deque, set)):
            own.clear()
            (own.update if isinstance(value, set) else own.extend)([self.copy(item) for item in value])
        if hasattr(value, "__dict__"):
            own.__dict__.update((key, self.copy(item)) for key, item in value.__dict__.items())
        return own

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        cells = tuple(types.CellType(self.copy(content)) for content in _contents(value))
        defaults = self.copy(value.__defaults__)
        own = types.FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
        own.__kwdefaults__ = self.copy(value.__kwdefaults__)
        own.__dict__.update(value.__dict__)
        return own


def _contents(function: types.FunctionType) -> list[Any]:
    """What a function has closed over; a name that is not bound yet makes it unfit to be copied."""
    return [cell.cell_contents for cell in function.__closure__ or ()]


def _reaches_module(value: Any, seen: set[int]) -> bool:
    if isinstance(value, nn.Module):
        return True
    if id(value) in seen or isinstance(value, (Tensor, str, bytes, int, float, complex, type, types.ModuleType)):
        return False
    seen.add(id(value))
    return any(_reaches_module(item, seen) for item in _parts(value))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.FunctionType):
        try:
            return [*_contents(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        except ValueError:
            return []
    if type(value).__module__.startswith(_FOREIGN) and not isinstance(value, _CONTAINERS):
        return []
    parts: list[Any] = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, dict):
        parts += value.values()
    elif isinstance(value, _CONTAINERS):
        parts += value
    return parts
