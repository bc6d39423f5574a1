"""What is written after --set."""

from __future__ import annotations

import pytest

from metalearn.errors import ConfigError
from metalearn.experiments.space import Choices, Range, list_combinations, read_settings


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("model.inner_lr=0.1,0.4", Choices("model.inner_lr", ("0.1", "0.4"))),
        ("--model.inner_lr=0.1", Choices("model.inner_lr", ("0.1",))),
        ("model.hidden=[40,40],[80, 80]", Choices("model.hidden", ("[40,40]", "[80, 80]"))),
        ("model.a='x,y',\"z,\"", Choices("model.a", ("'x,y'", '"z,"'))),
        ("model={a: [1,2], b: 3},MAML", Choices("model", ("{a: [1,2], b: 3}", "MAML"))),
        ("data.root=../here", Choices("data.root", ("../here",))),
        ("a=1..10", Range("a", 1, 10, False, True)),
        ("a=-1..1.5", Range("a", -1, 1.5, False, False)),
        ("a=log:1e-4..1", Range("a", 1e-4, 1, True, False)),
        ("a=log:16..256", Range("a", 16, 256, True, True)),
        ("a=.5..2.", Range("a", 0.5, 2, False, False)),
    ],
)
def test_lists_and_ranges(text: str, setting: Choices | Range) -> None:
    assert read_settings([text]) == [setting]
    assert read_settings([f"{setting.name}={setting}"]) == [setting]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "set is missing.*write for example --set"),
        (["model.inner_lr"], "set is 'model.inner_lr', but it must be OPTION=VALUES"),
        (["=1,2"], "must be OPTION=VALUES"),
        (["a="], "must be OPTION=VALUES"),
        (["a=1,"], "set a=1, has an empty value"),
        (["a=1,2,1"], "lists 1 twice"),
        (["a=1,2", "a=3"], "set names a twice"),
        (["a=2..1"], r"the range 2..1, but it must go from less to more; write 1..2"),
        (["a=1..1"], r"write --set a=1 for one value"),
        (["a=log:0..1"], "its ends must be above 0"),
    ],
)
def test_what_cannot_be_read_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(texts)


def test_combinations() -> None:
    assert list_combinations(read_settings(["a=1,2", "b=x,y"])) == [
        {"a": "1", "b": "x"}, {"a": "1", "b": "y"}, {"a": "2", "b": "x"}, {"a": "2", "b": "y"}
    ]  # fmt: skip
    assert list_combinations(read_settings(["a=1,2", "b=0..1"])) is None
    with pytest.raises(ConfigError, match="set lists 1,000,000 combinations, but there may be at most 10,000"):
        list_combinations(read_settings([f"{name}={','.join(map(str, range(100)))}" for name in "abc"]))


def test_a_number_of_a_range_is_written_whole() -> None:
    (small,) = read_settings(["a=log:1e-9..1"])
    assert float(small.format(1.2345678901234567e-05)) == 1.2345678901234567e-05
    (whole,) = read_settings(["a=1..9"])
    assert whole.format(3) == "3"
