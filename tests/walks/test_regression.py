"""A user has curves, a loss of their own, and wants a prediction with its picture."""

from __future__ import annotations

import pytest

from tests.walks.walk import Walk

pytestmark = pytest.mark.documents

PAGE = "regression"


def test_a_user_predicts_curves(walk: Walk) -> None:
    walk.save("curves.py")
    walk.save("train.py", STEPS=20)
    assert "MAML wrong by" in walk.run("python train.py")
    walk.save("predict.py")
    walk.run("python predict.py")
    walk.look("heating.png")
    walk.save("new_room.py")
    assert "after 4 hours" in walk.run("python new_room.py")

    walk.change("curves.py", "(hours[:10], scaled[:10])", "(hours[:10], scaled[:10, 0])")
    walk.wrong_script("python train.py", "shape")
    walk.change("new_room.py", ", loss=torch.nn.functional.l1_loss", "")
    walk.wrong_script("python new_room.py", "loss")
