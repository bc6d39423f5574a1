"""Pickles of NumPy arrays and plain types, read without running anything that they ask for.

Why not the standard library's ``pickle.Unpickler`` with an allow-list in ``find_class``? It copies what it reads, and every
process of a run opens a cache anew, to see whether it has changed. A made cache of 3 GB (protocol 4, two cores of an AMD EPYC,
Python 3.11) was opened in 0.3 s with 5 MiB of own memory here, and in 3.2 to 4.3 s with 2,870 MiB there: ``python
benchmarks/pickles.py``. Nor is an allow-list enough, for it sees names alone. 300,000 nested tuples as a key of a dict end the
process by a segmentation fault, and a memo index of 2^31 makes it ask for more than 12 GB.
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalearn.datamodules.sources.members import map_file
from metalearn.datamodules.sources.pickle_names import (
    GLOBALS,
    Name,
    Pending,
    apply_order,
    check_key,
    check_member,
    make_array,
    make_set,
)
from metalearn.errors import DataError

__all__ = ["load_arrays"]

MOST_STEPS = 100_000_000
"""Opcodes of a pickle; tieredImageNet's largest has some ten million."""
LONG = 1024
"""Byte strings of so many bytes and more are left where they are."""
LINE = 4096
LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
ARGUMENTS = {op.code.encode("latin-1")[0]: op.arg.n if op.arg else 0 for op in pickletools.opcodes}
NAMES = {op.code.encode("latin-1")[0]: op.name for op in pickletools.opcodes}


def load_arrays(file: Path | memoryview | bytes, name: str | None = None, limit: int = MOST_STEPS) -> Any:
    """What a pickle holds: arrays, numbers, strings, and dicts, lists, tuples and sets of them.

    It is read by an interpreter of its own, in which a name stands for one of a dozen constructors of ours and for nothing
    else, so there is nothing that a pickle could run. Arrays and long byte strings are read-only views of the mapped file:
    a pickle of gigabytes takes no memory until its images are looked at. Pickles of Python 2 are read too: their strings
    come as bytes, but keys of dicts come as ``str``. Byte strings of 1 KiB and more come as ``memoryview``.

    Args:
        file: its path, or its bytes.
        name: how messages call it.
        limit: the most opcodes that it may have.

    Raises:
        DataError: it asks for anything else, is truncated, or is no pickle; the line names the file and what it asks for.
    """
    where = name or (str(file) if isinstance(file, Path) else "pickle")
    data = map_file(file) if isinstance(file, Path) else memoryview(file)
    try:
        return _Reader(data, where).run(limit)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise DataError(
            f"pickle {where} cannot be read ({type(error).__name__}: {error}); it is truncated or damaged: fetch it again"
        ) from error


class _Reader:
    """A stack, a memo, and the opcodes that plain data needs."""

    def __init__(self, data: memoryview, where: str) -> None:
        self._data, self._where, self._at = data, where, 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, limit: int) -> Any:
        data, handlers, arguments = self._data, HANDLERS, ARGUMENTS
        end = len(data)
        for _ in range(limit):
            if self._at >= end:
                raise ValueError("it ends before its STOP")
            code = data[self._at]
            self._at += 1
            if code == 0x2E:
                return self._finish()
            handler = handlers.get(code)
            if handler is None:
                raise self._refused(f"the opcode {NAMES.get(code, hex(code))}")
            width = arguments[code]
            handler(self, self._take(width) if width else b"")
        raise ValueError(f"it has more than {limit} opcodes")

    def _take(self, width: int) -> Any:
        begin = self._at
        if width == pickletools.UP_TO_NEWLINE:
            return self._take_line()
        if width < 0:
            begin += LENGTHS[width]
            width = int.from_bytes(self._data[self._at : begin], "little")
        if begin + width > len(self._data):
            raise ValueError("it ends in the middle of a value")
        self._at = begin + width
        value = self._data[begin : self._at]
        return value if width >= LONG else bytes(value)

    def _take_line(self) -> bytes:
        begin = end = self._at
        while (length := bytes(self._data[end : end + LINE]).find(b"\n")) < 0:
            end += LINE
            if end >= len(self._data):
                raise ValueError("it ends in the middle of a line")
        end += length
        self._at = end + 1
        return bytes(self._data[begin:end])

    def _finish(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise ValueError("it ends with values left over")
        if isinstance(self._stack[0], (Name, Pending)):
            raise ValueError("it holds no data")
        return self._stack[0]

    def _refused(self, what: str) -> DataError:
        return DataError(f"pickle {self._where} asks for {what[:120]}, but only NumPy arrays and plain types are read, nothing "
                         "is run: do not trust it, or save it anew as arrays")  # fmt: skip

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._marks.pop()
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _put(self, key: int) -> None:
        value = self._memo[key] = self._stack[-1]
        if isinstance(value, Pending):
            value.keys.append(key)

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("values are appended to what is no list")
        target.extend(values)

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items are set of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[check_key(key)] = value

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _add_items(self, _: Any) -> None:
        values = self._pop_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise TypeError("values are added to what is no set")
        target.update(map(check_member, values))

    def _tuple(self, count: int) -> None:
        values = tuple(self._stack[len(self._stack) - count :])
        if len(values) != count:
            raise IndexError("a tuple lacks values")
        del self._stack[len(self._stack) - count :]
        self._stack.append(values)

    def _dict(self, _: Any) -> None:
        pairs = self._pop_mark()
        self._stack.append({})
        self._set_items(pairs)

    def _global(self, first: bytes) -> None:
        self._find(first.decode(), self._take(pickletools.UP_TO_NEWLINE).decode())

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._find(module, name)

    def _find(self, module: Any, name: Any) -> None:
        place = f"{module}.{name}"
        constructor = GLOBALS.get(place) if isinstance(module, str) and isinstance(name, str) else None
        if constructor is None or "." in name:
            raise self._refused(repr(place))
        self._stack.append(constructor)

    def _reduce(self, _: Any) -> None:
        values, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, Name) or name.make is None or not isinstance(values, tuple):
            raise self._refused("a call of what is no constructor of arrays")
        self._stack.append(name.make(*values))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Pending):
            raise self._refused("the state of what is no array")
        if target.dtype is not None:
            target.dtype = apply_order(target.dtype, state)
            return
        shape, dtype, fortran, raw = state[-4:]
        built = self._stack[-1] = make_array(raw, dtype, shape, "F" if fortran else "C")
        for key in target.keys:
            self._memo[key] = built


Handler = Callable[[_Reader, Any], None]
"""What an opcode does, given its argument."""


def _push_made(make: Callable[[Any], Any]) -> Handler:
    return lambda reader, raw: reader._stack.append(make(raw))


def _get_by(convert: Callable[[Any], int]) -> Handler:
    return lambda reader, raw: reader._stack.append(reader._memo[convert(raw)])


def _put_by(convert: Callable[[Any], int]) -> Handler:
    return lambda reader, raw: reader._put(convert(raw))


def _read_signed(raw: Any) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _read_unsigned(raw: Any) -> int:
    return int.from_bytes(raw, "little")


def _skip(reader: _Reader, raw: Any) -> None:
    pass


def _make_handlers() -> dict[int, Handler]:
    """What every known opcode does, by its code."""
    text, same = _push_made(lambda raw: bytes(raw).decode("utf-8", "surrogatepass")), _push_made(lambda raw: raw)
    table: dict[str, Handler] = {
        "PROTO": _skip, "FRAME": _skip, "MARK": _Reader._mark, "POP": lambda reader, _: reader._stack.pop(),
        "POP_MARK": lambda reader, _: reader._pop_mark().clear(), "DUP": lambda reader, _: reader._push(reader._stack[-1]),
        "NONE": _push_made(lambda _: None), "NEWTRUE": _push_made(lambda _: True), "NEWFALSE": _push_made(lambda _: False),
        "INT": _push_made(lambda raw: raw == b"01" if raw in (b"00", b"01") else int(raw)),
        "LONG": _push_made(lambda raw: int(raw.rstrip(b"L"))), "FLOAT": _push_made(float),
        "BINFLOAT": _push_made(lambda raw: struct.unpack(">d", raw)[0]),
        "BININT": _push_made(_read_signed), "BININT1": _push_made(_read_unsigned), "BININT2": _push_made(_read_unsigned),
        "LONG1": _push_made(_read_signed),
        "LONG4": _push_made(_read_signed), "STRING": _push_made(lambda raw: codecs.escape_decode(raw.strip()[1:-1])[0]),
        "UNICODE": _push_made(lambda raw: raw.decode("raw-unicode-escape")),
        "BINSTRING": same, "SHORT_BINSTRING": same, "BINBYTES": same, "SHORT_BINBYTES": same, "BINBYTES8": same,
        "BYTEARRAY8": same, "BINUNICODE": text, "SHORT_BINUNICODE": text, "BINUNICODE8": text,
        "EMPTY_LIST": _push_made(lambda _: []), "LIST": lambda reader, _: reader._push(reader._pop_mark()),
        "APPEND": lambda reader, _: reader._extend([reader._stack.pop()]),
        "APPENDS": lambda reader, _: reader._extend(reader._pop_mark()),
        "EMPTY_TUPLE": _push_made(lambda _: ()), "TUPLE": lambda reader, _: reader._push(tuple(reader._pop_mark())),
        "TUPLE1": lambda reader, _: reader._tuple(1), "TUPLE2": lambda reader, _: reader._tuple(2),
        "TUPLE3": lambda reader, _: reader._tuple(3), "EMPTY_DICT": _push_made(lambda _: {}), "DICT": _Reader._dict,
        "SETITEM": _Reader._set_item, "SETITEMS": lambda reader, _: reader._set_items(reader._pop_mark()),
        "EMPTY_SET": _push_made(lambda _: set()), "ADDITEMS": _Reader._add_items,
        "FROZENSET": lambda reader, _: reader._push(frozenset(make_set(reader._pop_mark()))),
        "GET": _get_by(int), "BINGET": _get_by(_read_unsigned), "LONG_BINGET": _get_by(_read_unsigned),
        "PUT": _put_by(int), "BINPUT": _put_by(_read_unsigned), "LONG_BINPUT": _put_by(_read_unsigned),
        "MEMOIZE": lambda reader, _: reader._put(len(reader._memo)),
        "GLOBAL": _Reader._global, "STACK_GLOBAL": _Reader._stack_global, "REDUCE": _Reader._reduce, "BUILD": _Reader._build,
    }  # fmt: skip
    codes = {name: code for code, name in NAMES.items()}
    return {codes[name]: handler for name, handler in table.items()}


HANDLERS = _make_handlers()
