"""What the tests of recorded steps count."""

from __future__ import annotations

from typing import Any

import pytest

from metalearn.inner.execution import step_recorder


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors moved in each step that was replayed."""
    calls: list[int] = []
    real = step_recorder.replay

    def count(program: Any, constants: Any, adapted: Any, others: Any) -> Any:
        calls.append(len(adapted))
        return real(program, constants, adapted, others)

    monkeypatch.setattr(step_recorder, "replay", count)
    return calls
