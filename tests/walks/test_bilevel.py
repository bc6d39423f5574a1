"""A researcher has a bilevel problem of their own: estimators, certificates, counts, an algorithm of their own."""

from __future__ import annotations

import pytest

from tests.walks.walk import Walk

pytestmark = pytest.mark.documents

PAGE = "bilevel"


def test_a_researcher_solves_a_bilevel_problem(walk: Walk) -> None:
    walk.save("ridge.py")
    walk.save("compare_estimators.py")
    errors = [float(line.split()[2]) for line in walk.run("python compare_estimators.py").splitlines()]
    assert len(errors) == 3
    assert max(errors) < 1e-4

    walk.save("certificate.py")
    lines = walk.run("python certificate.py").splitlines()
    assert [line.split()[0] for line in lines] == ["5", "20", "80"]
    walk.save("solve.py")
    assert "own algorithm: 0.12" in walk.run("python solve.py")

    walk.change("solve.py", "step_size=0.3", "step_size=3.0")
    walk.wrong_script("python solve.py", "lower step_size=3")
    walk.save("solve.py")
    walk.change("solve.py", "torch.zeros(5), steps=100", "torch.zeros(4), steps=100")
    walk.wrong_script("python solve.py", "4")
