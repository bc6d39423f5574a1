"""The constructors that a pickle of data may name: arrays, their types, and plain containers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["GLOBALS", "Name", "Pending", "apply_order", "check_key", "check_member", "make_array", "make_set"]

DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU]\d{1,6}|O8?)")
PLAIN = (str, bytes, int, float, type(None))


class Pending:
    """An array or a dtype between its making and its state; ``keys`` are where the memo has it."""

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype
        self.keys: list[int] = []


class Name:
    """What stands for a global."""

    def __init__(self, make: Callable[..., Any] | None) -> None:
        self.make = make


def check_key(key: Any) -> Any:
    key = bytes(key) if isinstance(key, memoryview) else key
    return key.decode("latin-1") if isinstance(key, bytes) else check_member(key)


def check_member(value: Any) -> Any:
    """What may be hashed: hashing nested tuples of a hostile depth would overflow the stack."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, PLAIN):
        raise TypeError(f"a key is a {type(value).__name__}")
    return value


def _decode(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _make_dtype(kind: Any, *_: Any) -> Pending:
    name = _decode(kind)
    if not DTYPE.fullmatch(name):
        raise TypeError(f"an array of type {name[:40]!r}; numbers and strings are read")
    return Pending(name)


def apply_order(dtype: str, state: tuple[Any, ...]) -> str:
    """The state of a dtype is (version, byte order, sub-type, names, fields, size, alignment, flags[, metadata])."""
    if any(part is not None for part in state[2:5]):
        raise TypeError("an array of records; numbers and strings are read")
    order = _decode(state[1])
    return order + dtype.lstrip("<>=|") if order in ("<", ">") else dtype


def make_array(raw: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if not isinstance(dtype, Pending) or dtype.dtype is None:
        raise TypeError("an array has no dtype")
    shape = tuple(int(length) for length in (shape if isinstance(shape, tuple) else (shape,)))
    if any(length < 0 for length in shape):
        raise ValueError(f"an array has the shape {shape}")
    if "O" in dtype.dtype:
        if not isinstance(raw, list) or not all(isinstance(value, (bytes, memoryview)) for value in raw):
            raise TypeError("an array of objects other than byte strings; save it as numbers")
        values = np.empty(len(raw), object)
        for place, value in enumerate(raw):
            values[place] = value
        return values.reshape(shape)
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    if not isinstance(raw, (bytes, bytearray, memoryview)):
        raise TypeError(f"an array's data are a {type(raw).__name__}")
    kind = np.dtype(dtype.dtype)
    if not kind.itemsize:
        raise TypeError("an array of empty strings")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if _decode(order) == "F" else "C")


def _reconstruct(kind: Any, *_: Any) -> Pending:
    if kind is not GLOBALS["numpy.ndarray"]:
        raise TypeError("an array of another class than ndarray")
    return Pending()


def _encode(text: str, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if _decode(encoding) not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin-1")


def _to_bytes(*arguments: Any) -> bytes:
    """A bytearray: of nothing, of bytes, or of text and its encoding."""
    if arguments and isinstance(arguments[0], str):
        return _encode(*arguments)
    if arguments and not isinstance(arguments[0], (bytes, memoryview)):
        raise TypeError("bytes of what are none")
    return bytes(arguments[0]) if arguments else b""


def _to_dict(*arguments: Any) -> dict[Any, Any]:
    """An OrderedDict of pairs, or a defaultdict of a factory, which is dropped."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else []
    return {check_key(key): value for key, value in pairs}


def make_set(values: Any = ()) -> set[Any]:
    return {check_member(value) for value in values}


GLOBALS = {
    "numpy.ndarray": Name(None),
    "numpy.dtype": Name(_make_dtype),
    "_codecs.encode": Name(_encode),
    "collections.OrderedDict": Name(_to_dict),
    "collections.defaultdict": Name(_to_dict),
}
for _core in ("numpy.core", "numpy._core"):
    GLOBALS[f"{_core}.multiarray._reconstruct"] = Name(_reconstruct)
    GLOBALS[f"{_core}.multiarray.scalar"] = Name(lambda dtype, raw: make_array(raw, dtype, ())[()])
    GLOBALS[f"{_core}.numeric._frombuffer"] = Name(make_array)
for _builtins in ("builtins", "__builtin__"):
    GLOBALS[f"{_builtins}.set"] = Name(make_set)
    GLOBALS[f"{_builtins}.frozenset"] = Name(lambda values=(): frozenset(make_set(values)))
    GLOBALS[f"{_builtins}.bytes"] = Name(lambda: b"")
    GLOBALS[f"{_builtins}.bytearray"] = Name(_to_bytes)
    GLOBALS[f"{_builtins}.list"] = Name(list)
    GLOBALS[f"{_builtins}.dict"] = Name(dict)
    GLOBALS[f"{_builtins}.int"] = Name(lambda: 0)
