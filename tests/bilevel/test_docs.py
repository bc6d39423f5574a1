"""The example of the page on bilevel problems gives what it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def test_the_example_of_the_page() -> None:
    text = (Path(__file__).parents[2] / "docs" / "howto" / "bilevel.md").read_text()
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(code, "bilevel.md", "exec"), names)
    x, estimate, result = names["x"], names["estimate"], names["result"]
    assert isinstance(x, torch.Tensor)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, estimate.value, rtol=0.05, atol=1e-4)  # type: ignore[attr-defined]
    assert torch.equal(names["module"].solution(), result.x)  # type: ignore[attr-defined]
