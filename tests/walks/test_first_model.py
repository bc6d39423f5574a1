"""A student wants to understand MAML, and to see it work."""

from __future__ import annotations

import pytest

from tests.walks.drawings import make_drawings
from tests.walks.walk import Walk

pytestmark = pytest.mark.documents

PAGE = "first_model"
SMALL = "--trainer.max_steps 3 --model.backbone.hidden 8 --data.train_tasks 32 --data.val_tasks 4 --data.test_tasks 8"


def test_a_student_sees_maml_work(walk: Walk) -> None:
    walk.mistake("metalearn fit --config maml_glyhps_5w1s", "did you mean maml_glyphs_5w1s")
    walk.mistake("metalearn fit --model.inner_step 3", "did you mean inner_steps")
    walk.mistake("metalearn fit --data.ways 500", "use at most 111 ways")
    assert "test accuracy" in walk.run("metalearn fit", SMALL)
    walk.look("runs/maml_glyphs_5w1s/version_0/episode.png")
    walk.look("runs/maml_glyphs_5w1s/version_0/inner_steps.png")

    tested = walk.run("metalearn test --ckpt_path maml_glyphs_5w1s --model.eval_inner_steps 10", "--data.test_tasks 8")
    assert "test accuracy" in tested

    walk.save("inner_loop.py")
    assert read_difference(walk.run("python inner_loop.py")) <= 1e-6
    walk.save("outer_loop.py")
    assert read_difference(walk.run("python outer_loop.py")) <= 1e-6

    make_drawings(walk.folder)
    walk.mistake("metalearn predict --ckpt_path maml_glyphs_5w1s --support QUERIES --query QUERIES", "QUERIES")
    answers = walk.run("metalearn predict --ckpt_path maml_glyphs_5w1s --support SUPPORT --query QUERIES")
    assert "house.png" in answers


def read_difference(printed: str) -> float:
    return float(printed.split()[-1])
