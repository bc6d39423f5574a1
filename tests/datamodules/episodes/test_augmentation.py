"""Augmentation: of training images alone, each by itself, and the same for a task whatever else happens."""

from __future__ import annotations

import pickle
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from metalearn import ConfigError, Episode
from metalearn.datamodules import EpisodeOptions, ImageFolderEpisodes
from metalearn.datamodules.episodes.augmentation import augment_tasks, seed_tasks
from metalearn.datamodules.sources.images import ImageSpec
from tests.made import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("mine")))


class Recorder(L.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch)
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fitted(folder: str, epochs: int = 1, **more: Any) -> tuple[Recorder, ImageFolderEpisodes]:
    options = {"augment": [v2.RandomHorizontalFlip(), v2.RandomCrop(16, padding=4)], **more.pop("options", {})}
    data = ImageFolderEpisodes(
        folder, ways=2, shots=1, queries=2, image_size=16, tasks_per_batch=2, train_tasks=6, val_tasks=2,
        options=EpisodeOptions(**options), **more,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    module = Recorder()
    trainer.fit(module, datamodule=data)
    return module, data


def test_only_training_images_are_augmented_and_the_loader_stays_as_it_was(folder: str) -> None:
    module, data = fitted(folder)
    plain = [data.episode(0, "train", index) for index in range(6)]
    found = torch.cat([batch.query.x for batch in module.seen["train"]])
    assert sum(not torch.equal(found[index], plain[index].query.x) for index in range(6)) == 6
    assert torch.equal(module.seen["val"][0].query.x[1], data.episode(0, "val", 1).query.x)
    assert torch.equal(next(iter(data.train_dataloader())).query.x[0], plain[0].query.x)


def test_a_task_is_augmented_the_same_whatever_draws_it(folder: str) -> None:
    """By a worker or not, after other random numbers were drawn, in batches of another size."""
    expected = torch.cat([batch.support.x for batch in fitted(folder)[0].seen["train"]])
    torch.rand(7)
    for more in ({"num_workers": 1}, {"options": {"balanced": False}}):
        assert torch.equal(torch.cat([batch.support.x for batch in fitted(folder, **more)[0].seen["train"]]), expected)


@pytest.mark.filterwarnings("ignore:You have overridden .* in `LightningModule`")  # Lightning says what it does
def test_hooks_of_the_module_stay_its_own_without_augmentation(folder: str) -> None:
    class Hooked(Recorder):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen["hook"] = [batch]
            return batch

    data = ImageFolderEpisodes(folder, ways=2, shots=1, queries=2, image_size=16, train_tasks=4, val_tasks=2)
    module = Hooked()
    trainer = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(module, datamodule=data)
    assert torch.equal(module.seen["hook"][0].support.x[0], data.episode(0, "train", 0).support.x)


def test_augmented_data_pickle_for_workers_that_are_spawned(folder: str) -> None:
    _, data = fitted(folder)
    dataset = data.train_dataloader().dataset
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2].support.x, dataset[2].support.x)


def test_each_image_is_transformed_by_itself_and_the_rng_is_left_alone(folder: str) -> None:
    class Shift(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            assert image.ndim == 3
            assert 0 <= image.min() <= image.max() <= 1
            return image * 0 + torch.rand(())

    data = ImageFolderEpisodes(
        folder, ways=2, shots=1, queries=2, image_size=16, options=EpisodeOptions(normalize=True)
    )
    data.setup()
    batch = data.draw(0, "train", [0, 1])
    before = torch.get_rng_state()
    assert data.image_spec is not None
    found = augment_tasks(batch, [Shift()], seed_tasks(batch), data.image_spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(found, Episode)
    assert len(torch.unique(torch.cat([role.x.flatten(0, 1) for role in found])[:, 0, 0, 0])) == 2 * (2 + 4)
    assert seed_tasks(batch) == [seed_tasks(data.draw(0, "train", [index]))[0] for index in (0, 1)]


def test_tasks_of_any_shape_are_augmented(folder: str) -> None:
    module, _ = fitted(folder, options={"unlabeled": 1})
    assert module.seen["train"][0].unlabeled.x.shape == (2, 2, 3, 16, 16)


def test_images_must_keep_one_shape() -> None:
    class Shrink(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[:, : 8 + int(torch.randint(0, 4, ()))]

    batch = torch.rand(1, 6, 3, 16, 16)
    episode = Episode(*(type(role)(batch, torch.zeros(1, 6)) for role in _pair()))
    with pytest.raises(ConfigError, match=r"augment gives images of the shapes \[3, "):
        augment_tasks(episode, [Shrink()], [1], ImageSpec(size=16))


def _pair() -> Episode:
    from metalearn import Batch

    empty = Batch(torch.zeros(0), torch.zeros(0))
    return Episode(empty, empty)
