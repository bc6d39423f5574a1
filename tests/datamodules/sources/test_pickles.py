"""Pickles give arrays and plain types, whoever wrote them; what asks for more is named, and nothing of it runs."""

from __future__ import annotations

import builtins
import collections
import copyreg
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalearn import DataError
from metalearn.datamodules.sources.pickles import load_arrays

PIXELS = np.arange(2 * 20 * 20 * 3, dtype=np.uint8).reshape(2, 20, 20, 3)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_come_back_as_they_were_in_every_protocol(protocol: int) -> None:
    data = {
        "pixels": PIXELS, "floats": np.asfortranarray(PIXELS.astype(">f4")), "ints": np.arange(5), "none": np.zeros((0, 3)),
        "flags": np.array([True, False]), "names": np.array(["ab", "c"]), "bytes": np.array([b"ab", b"c"]),
        "scalar": np.float32(2.5), "plain": [1, -2, 300, 70_000, 2**70, 2.5, None, True, False, "ü\n'", b"\x00\xff", b""],
        "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": {}}, "set": {1, "a"}, "frozen": frozenset("ab"),
        7: "number",
    }  # fmt: skip
    data["again"] = data["pixels"]
    found = load_arrays(pickle.dumps(data, protocol))
    assert same(found, data)
    assert found["again"] is found["pixels"]


def test_containers_of_collections_come_as_dicts() -> None:
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    default = collections.defaultdict(list, {"x": [1]})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert load_arrays(pickle.dumps([ordered, default], protocol)) == [{"b": 1, "a": 2}, {"x": [1]}]


def test_python_2_wrote_strings_as_bytes() -> None:
    """As its cPickle wrote ``{'data': array, 'labels': [7], 'name': 'x'}`` in protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x06\x01\x02\x03\x04\x05\xfftb"
    )
    data = b"\x80\x02}q\x00(U\x04data" + array + b"U\x06labels]K\x07aU\x04nameU\x01xu."
    found = load_arrays(data)
    assert np.array_equal(found["data"], [[1, 2, 3], [4, 5, 255]])
    assert (found["labels"], found["name"]) == ([7], b"x")
    assert load_arrays(b"(dp0\nS'k'\np1\nI01\nsS'l'\nL12L\nsS'f'\nF1.5\ns.") == {"k": True, "l": 12, "f": 1.5}


def test_a_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"pixels": PIXELS, "png": b"x" * 5000}))
    found = load_arrays(path)
    assert np.array_equal(found["pixels"], PIXELS)
    assert not found["pixels"].flags.writeable
    assert isinstance(found["png"], memoryview)


class Runs:
    """Pickles as a call."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


class Stateful:
    def __setstate__(self, state: object) -> None:
        Path("evil").touch()

    def __getstate__(self) -> object:
        return {"a": 1}


class Persistent(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "evil" if obj == "x" else None


def stack_global(module: str, name: str, *args: str) -> bytes:
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, *args)]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93(" + b"".join(texts[2:]) + b"tR."


TOUCH = "__import__('pathlib').Path('evil').touch()"
EVIL: dict[str, tuple[bytes, str]] = {
    "system": (pickle.dumps(Runs(os.system, "touch evil")), r"system"),
    "eval": (pickle.dumps(Runs(eval, TOUCH), 2), "builtin.*eval"),
    "exec": (pickle.dumps(Runs(exec, TOUCH)), "builtins.exec"),
    "getattr": (pickle.dumps(Runs(getattr, "x", "upper")), "builtins.getattr"),
    "import": (stack_global("builtins", "__import__", "os"), "builtins.__import__"),
    "nested": (pickle.dumps({"image_data": [Runs(Runs, eval, Runs(eval, TOUCH))]}), "test_pickles.Runs|eval"),
    "state": (pickle.dumps(Stateful()), "copyreg|Stateful"),
    "state in protocol 0": (pickle.dumps(Stateful(), 0), "reconstructor|Stateful"),
    "dotted": (stack_global("numpy", "ndarray.tofile", "evil"), "numpy.ndarray.tofile"),
    "dotted module": (stack_global("numpy.ndarray", "tofile", "evil"), "numpy.ndarray.tofile"),
    "split elsewhere": (stack_global("numpy.core", "multiarray._reconstruct", "evil"), "multiarray._reconstruct"),
    "memmap": (b"cnumpy\nmemmap\n(S'evil'\nS'u1'\nS'w+'\ntR.", "numpy.memmap"),
    "load": (b"cnumpy\nload\n(S'evil'\ntR.", "numpy.load"),
    "f2py": (b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.", "runstring"),
    "array class called": (b"cnumpy\nndarray\n(I3\ntR.", "a call of what is no constructor"),
    "string called": (b"X\x01\x00\x00\x00a(I3\ntR.", "a call of what is no constructor"),
    "state of a constructor": (b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "the state of what is no array"),
    "state of a dict": (b"}}b.", "the state of what is no array"),
    "persistent": (b"Pevil\n.", "the opcode PERSID"),
    "persistent on the stack": (b"\x80\x02X\x04\x00\x00\x00evilQ.", "the opcode BINPERSID"),
    "extension 1": (b"\x80\x02\x82\x01(tR.", "the opcode EXT1"),
    "extension 2": (b"\x80\x02\x83\x01\x00(tR.", "the opcode EXT2"),
    "extension 4": (b"\x80\x02\x84\x01\x00\x00\x00(tR.", "the opcode EXT4"),
    "instance": (b"(S'touch evil'\nios\nsystem\n.", "the opcode INST"),
    "object": (b"(cos\nsystem\nS'touch evil'\no.", "os.system"),
    "new object": (b"\x80\x02cnumpy\nndarray\nK\x03\x85\x81.", "the opcode NEWOBJ"),
    "buffer": (b"\x80\x05\x97.", "the opcode NEXT_BUFFER"),
    "a name of lines": (stack_global("os\nTraceback", "system"), r"os.nTraceback"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_nothing_is_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, message = EVIL[kind]
    (tmp_path / "cache.pkl").write_bytes(data)
    with pytest.raises(DataError, match=rf"cache.pkl asks for .*({message}).*nothing is run") as caught:
        load_arrays(tmp_path / "cache.pkl")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.pkl"]


def test_the_evil_pickles_are_evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would show nothing."""
    monkeypatch.chdir(tmp_path)
    for kind in ("system", "eval", "exec", "instance", "object", "state"):
        pickle.loads(EVIL[kind][0])
        assert (tmp_path / "evil").exists(), kind
        (tmp_path / "evil").unlink()


def test_a_registered_extension_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickle keeps those that it has seen, and would not ask its ``find_class`` again."""
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("builtins", "eval", 200)
    try:
        data = b"\x80\x02\x82\xc8X%s\x85R." % (struct.pack("<I", len(TOUCH)) + TOUCH.encode())
        pickle.loads(data)
        (tmp_path / "evil").unlink()
        with pytest.raises(DataError, match="the opcode EXT1"):
            load_arrays(data)
        assert not (tmp_path / "evil").exists()
    finally:
        copyreg.remove_extension("builtins", "eval", 200)
        copyreg.clear_extension_cache()


def test_no_import_and_no_builtin_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps({"pixels": PIXELS, "set": {1}}, 2)
    monkeypatch.setattr(builtins, "__import__", lambda *_, **__: pytest.fail("something is imported"))
    found = load_arrays(data)
    monkeypatch.undo()
    assert found["set"] == {1}


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], object),
        np.array([[1]], object),
        np.zeros(2, [("a", "u1"), ("b", "f4")]),
        np.zeros(2, "c8"),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "V3"),
        np.zeros(2, "g"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_anything_but_numbers_are_refused(array: np.ndarray) -> None:
    for protocol in (0, 2, 4, 5):
        with pytest.raises(DataError, match="cannot be read .*an array of|asks for") as caught:
            load_arrays(pickle.dumps(array, protocol))
        assert "\n" not in str(caught.value)


def test_arrays_of_byte_strings_are_read() -> None:
    array = np.empty(2, object)
    array[:] = [b"a", b"b" * 2000]
    assert [bytes(value) for value in load_arrays(pickle.dumps(array))] == [b"a", b"b" * 2000]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_cut_is_one_line(protocol: int) -> None:
    data = pickle.dumps({"image_data": PIXELS[:1, :3], "class_dict": {"a": [0, 1]}, "set": {1}}, protocol)
    for length in range(0, len(data), 3):
        with pytest.raises(DataError, match=r"pickle it .*truncated|pickle it asks for") as caught:
            load_arrays(data[:length], "it")
        assert "\n" not in str(caught.value)


def test_every_changed_byte_is_one_line_or_data() -> None:
    """Nothing else comes of noise: no crash, no other exception, no object."""
    rng, messages = np.random.default_rng(0), []
    for protocol in (0, 2, 4, 5):
        data = np.frombuffer(
            pickle.dumps({"image_data": PIXELS[:1, :2], "class_dict": {"a": [0, 1.5]}}, protocol), np.uint8
        )
        for _ in range(1000):
            noisy = data.copy()
            noisy[rng.integers(0, len(data), 2)] = rng.integers(0, 256, 2)
            try:
                load_arrays(noisy.tobytes())
            except DataError as error:
                messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends before its STOP"),
        (b"not a pickle", "asks for|cannot be read"),
        (b"\x8d" + b"\xff" * 8 + b".", "in the middle of a value"),
        (b"\x80\x02" + b"]" * 2000 + b".", "more than 1000 opcodes"),
        (b"(((K\x01.", "left over"),
        (b"cnumpy\ndtype\n.", "no data"),
        (b"}(K\x01\x85K\x01u.", "a key is a tuple"),
        (b"K\x01K\x01a.", "no list"),
        (b"h\x05.", "KeyError"),
    ],
)
def test_what_is_no_data_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_arrays(data, limit=1000)
    assert "\n" not in str(caught.value)


def test_tuples_of_hostile_depth_are_not_hashed() -> None:
    """Hashing them would overflow the stack and end the process."""
    with pytest.raises(DataError, match="a key is a tuple"):
        load_arrays(b"})" + b"\x85" * 300_000 + b"K\x01s.")
