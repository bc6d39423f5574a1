"""The owner of a Lightning project: own network, data module, Trainer, callbacks and logger."""

from __future__ import annotations

import pytest

from tests.walks.walk import Walk

pytestmark = pytest.mark.documents

PAGE = "lightning"


def test_the_owner_of_a_project_brings_maml_into_it(walk: Walk) -> None:
    walk.save("project.py", STEPS=6)
    walk.change("project.py", "Signals(0, 800)", "Signals(0, 24)")
    assert "test/acc_step_3" in walk.run("python project.py")
    walk.save("adapt.py")
    assert "right:" in walk.run("python adapt.py")

    walk.change("project.py", "torch.nn.Linear(16 * 14, 3)", "torch.nn.Linear(16 * 14, 2)")
    walk.wrong_script("python project.py", "2")
    walk.change("project.py", "torch.nn.Linear(16 * 14, 2)", "torch.nn.Linear(16 * 14, 3)")
    walk.change("project.py", "Batch(x[:6], y[:6])", "Batch(x[:6], y[:6, None])")
    walk.wrong_script("python project.py", "[")
