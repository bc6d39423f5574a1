"""What the tests of recorded steps count."""

from __future__ import annotations

from typing import Any

import pytest

from metalearn.inner.execution import step_recorder


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is recorded when it is met first, so that tests are short."""
    monkeypatch.setattr(step_recorder.StepRecorder, "meetings", 1)


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
