"""The guide's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def test_the_example_of_the_guide() -> None:
    text = (Path(__file__).parents[2] / "docs" / "background" / "bilevel.md").read_text()
    code, prepare, fit = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names: dict[str, object] = {}
        exec(compile(code, "bilevel.md", "exec"), names)
        x, found, result = names["x"], names["found"], names["result"]
        exec(compile(prepare, "bilevel.md", "exec"), names)
        exec(compile(fit, "bilevel.md", "exec"), names)
    assert isinstance(x, torch.Tensor)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, found.value, rtol=0.05, atol=1e-4)  # type: ignore[attr-defined]
    assert torch.equal(names["module"].solution(), result.x)  # type: ignore[attr-defined]
