"""CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018): two splits of CIFAR-100's 100 classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from metalearn.checks import MOST_OF_A_WIDTH, Count, check_whole
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.sources.caches import list_caches
from metalearn.datamodules.sources.cifar_files import GROUP_OF, download_cifar, list_official
from metalearn.datamodules.sources.forms import Form, find_classes, list_folder, list_split_folders
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import ListedClass
from metalearn.datamodules.sources.places import Place
from metalearn.datamodules.sources.published import CIFAR_FS, FC100, compare_splits

__all__ = ["CIFARFSDataModule", "FC100DataModule"]


class _Cifar100Classes(ListedImages):
    """The classes of CIFAR-100 in a split of their own."""

    published: ClassVar[dict[str, tuple[str, ...]]]
    pickles: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str = "data/cifar100",
        ways: Count = 5,
        shots: Count = 1,
        queries: Count = 15,
        tasks_per_batch: int = 4,
        train_tasks: int = 1000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 32,
        download: bool = True,
        options: EpisodeOptions | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            ways,
            shots,
            queries,
            tasks_per_batch,
            train_tasks,
            val_tasks,
            test_tasks,
            seed,
            num_workers,
            cache_dir,
            options,
        )
        check_whole("image_size", image_size, 8, MOST_OF_A_WIDTH)
        self.root = Path(root)
        self.image_spec = ImageSpec(channels=3, size=image_size)
        self.download = download

    def prepare_data(self) -> None:
        """Download CIFAR-100 where ``root`` holds nothing, pack the images, and check the result."""
        if self.download and not self.root.is_file():
            download_cifar(self.root)
        super().prepare_data()

    def list_classes(self) -> Sequence[ListedClass]:
        forms = (
            Form("cifar-100-python/ with train, test and meta", self._from_official),
            Form(self.pickles[0].format("{train,val,test}"), partial(list_caches, patterns=self.pickles)),
            Form("data/ with a folder per class", self._from_folders),
            Form("train/, val/ and test/ with a folder per class", partial(list_split_folders, group_of=_group_of)),
        )
        remedy = "set data.root to it, or to an empty folder with download on"
        listed = find_classes(self.root, forms, self.title, remedy)
        compare_splits(f"{self.title} in {self.root}", listed, self.published)
        return listed

    def _from_official(self, place: Place) -> list[ListedClass] | None:
        entries = list_official(place)
        return None if entries is None else self._split(entries)

    def _from_folders(self, place: Place) -> list[ListedClass] | None:
        folders = place.folders().get("data", place).folders()
        if not folders.keys() >= GROUP_OF.keys():
            return None
        return self._split({name: list_folder("", name, folders[name]).entries for name in GROUP_OF})

    def _split(self, entries: dict[str, Any]) -> list[ListedClass]:
        return [
            ListedClass(split, name, sorted(entries[name], key=lambda entry: entry.name), GROUP_OF[name])
            for split, names in self.published.items()
            for name in sorted(names)
        ]


class CIFARFSDataModule(_Cifar100Classes):
    """Few-shot episodes of CIFAR-FS (Bertinetto et al. 2019): 64 classes of CIFAR-100 for
    training, 16 for validation, 20 for test.

    ``root`` may hold any of these; which it is is found by looking, and logged:

    - ``cifar-100-python/``, CIFAR-100's official files, which are downloaded where nothing else is there. Training and test
      images together are 600 a class. They are read without running anything that the pickles ask for;
    - pickles ``CIFAR_FS_{train,val,test}.pickle`` of ``data`` and ``labels``, as few-shot repositories share them;
    - ``data/`` with a folder of images for each of the 100 classes;
    - ``train/``, ``val/`` and ``test/``, each with a folder of images per class;
    - a zip or tar of one of these, read in place.

    Each may lie in the only folder of ``root`` or of the archive. Groups of classes are CIFAR-100's superclasses.

    Args:
        root: the folder or archive; CIFAR-100 is downloaded to it.
        ways: classes a task, ``N``; or the least and the most, ``[5, 20]``: then each task draws its own.
        shots: support images a class, ``K``; or the least and the most.
        queries: query images a class, ``Q``; or the least and the most.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width; the whole image is resized, its aspect ratio is not kept.
        download: fetch the official archive where ``root`` holds nothing.
        options: see :class:`EpisodeOptions`.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing and cannot be downloaded, damaged, foreign or asks to run code, a class is
            empty or in two splits, or the cache cannot be written.
    """

    title = "CIFAR-FS"
    published = CIFAR_FS
    pickles = ("CIFAR_FS_{}.pickle", "CIFAR_FS_{}.pkl")


class FC100DataModule(_Cifar100Classes):
    """Few-shot episodes of FC100 (Oreshkin et al. 2018): 12 superclasses of CIFAR-100 for training
    (60 classes), 4 for validation (20), 4 for test (20).

    ``root`` may hold any of these; which it is is found by looking, and logged:

    - ``cifar-100-python/``, CIFAR-100's official files, which are downloaded where nothing else is there. Training and test
      images together are 600 a class. They are read without running anything that the pickles ask for;
    - pickles ``FC100_{train,val,test}.pickle`` of ``data`` and ``labels``, as few-shot repositories share them;
    - ``data/`` with a folder of images for each of the 100 classes;
    - ``train/``, ``val/`` and ``test/``, each with a folder of images per class;
    - a zip or tar of one of these, read in place.

    Each may lie in the only folder of ``root`` or of the archive. Groups of classes are CIFAR-100's superclasses.

    Args:
        root: the folder or archive; CIFAR-100 is downloaded to it.
        ways: classes a task, ``N``; or the least and the most, ``[5, 20]``: then each task draws its own.
        shots: support images a class, ``K``; or the least and the most.
        queries: query images a class, ``Q``; or the least and the most.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width; the whole image is resized, its aspect ratio is not kept.
        download: fetch the official archive where ``root`` holds nothing.
        options: see :class:`EpisodeOptions`.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing and cannot be downloaded, damaged, foreign or asks to run code, a class is
            empty or in two splits, or the cache cannot be written.
    """

    title = "FC100"
    published = FC100
    pickles = ("FC100_{}.pickle", "FC100_{}.pkl")


def _group_of(name: str) -> str:
    return GROUP_OF.get(name, "")
