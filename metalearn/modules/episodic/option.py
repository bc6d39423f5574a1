"""An option of the inner loop as an attribute of a module."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ["Option"]

Value = TypeVar("Value")


class Option(Generic[Value]):
    """Reads and sets one option of the runner; a value that is set is checked as the argument was.

    Args:
        field: the name of the option; ``None`` for that of the attribute.
        read: the attribute of the options that is read, where that is another.
    """

    def __init__(self, read: str | None = None) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self._read = self._read or name

    def __get__(self, module: Any, owner: type | None = None) -> Value:
        if module is None:
            return self  # type: ignore[return-value]
        value: Value = getattr(module.options, self._read)  # type: ignore[arg-type]
        return value

    def __set__(self, module: Any, value: Value) -> None:
        module.set_options(**{self._name: value})
