"""An engineer has a folder of photos for each class."""

from __future__ import annotations

import pytest

from tests.made import make_folder
from tests.walks.drawings import make_drawings
from tests.walks.walk import Walk

pytestmark = pytest.mark.documents

PAGE = "images"
SMALL = (
    "--trainer.max_steps 3 --model.backbone.hidden 4 --model.inner_steps 1 --data.ways 2 --data.tasks_per_batch 2"
    " --data.train_tasks 6 --data.val_tasks 2 --data.test_tasks 2"
)


def test_an_engineer_recognises_classes_of_their_own(walk: Walk) -> None:
    walk.mistake("metalearn data info --data ImageFolderEpisodes --data.root fotos", "fotos")
    make_folder(walk.folder / "photos", classes=16, images=15)
    look = "metalearn data info --data ImageFolderEpisodes --data.root photos --data.image_size 32"
    assert "tasks" in walk.run(look)
    walk.look("imagefolderepisodes.png")

    walk.save("photos.yaml")
    walk.mistake("metalearn fit --config photos.yaml", "ways is 5")
    walk.mistake("metalearn fit --config photos.yaml --data.ways 2 --data.shots 10", "shots")
    assert "test accuracy" in walk.run("metalearn fit --config photos.yaml", SMALL)
    make_drawings(walk.folder)
    predict = (
        "metalearn predict --ckpt_path runs/photos/version_0/checkpoints/best.ckpt --support SUPPORT --query QUERIES"
    )
    assert "house.png" in walk.run(predict)
    walk.look("predictions/predictions.png")
