"""Someone chooses by theory, and measures whether it holds."""

from __future__ import annotations

import pytest

from tests.walks.walk import Walk

pytestmark = pytest.mark.documents

PAGE = "choosing"
SMALL = "--trainer.max_steps 4 --data.train_tasks 100 --data.val_tasks 4 --data.test_tasks 8"


def test_someone_measures_what_to_choose(walk: Walk) -> None:
    walk.mistake("metalearn fit --config maml_sinusoid_10s --model.inner_steps 0", "use inner_steps=1")
    walk.run("metalearn fit --config maml_sinusoid_10s --trainer.max_steps 2000", SMALL)
    first_order = "metalearn fit --config maml_sinusoid_10s --trainer.max_steps 2000 --model.first_order true"
    walk.run(f"{first_order} --run_name first_order", SMALL)
    walk.run("metalearn fit --config pooled_sinusoid_10s --trainer.max_steps 2000", SMALL)
    walk.mistake("metalearn compare maml_sinusoid_10s first_oder", "first_order")
    table = walk.run("metalearn compare maml_sinusoid_10s first_order pooled_sinusoid_10s")
    assert "better on" in table
    walk.look("comparison/curves.png")

    seeds = "metalearn seeds maml_sinusoid_10s --seeds 5 --trainer.max_steps 1000 --data.train_tasks 5000"
    assert "between seeds" in walk.run(seeds, f"--seeds 2 {SMALL}")
    sweep = (
        "metalearn sweep maml_sinusoid_10s --set model.inner_lr=log:0.001..0.1 --set model.inner_steps=1,3"
        " --trials 12 --trainer.max_steps 500 --data.train_tasks 2500 --test"
    )
    assert "best val/loss" in walk.run(sweep, f"--trials 2 {SMALL}")
    assert "first_order" in walk.run("metalearn runs")
