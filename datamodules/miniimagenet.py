"""miniImageNet (Ravi and Larochelle 2017): 100 classes of ImageNet, 64 for training, 16 for validation, 20 for test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from metalearn.checks import MOST_OF_A_WIDTH, Count, check_whole
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.sources.caches import list_caches
from metalearn.datamodules.sources.forms import Form, find_classes, list_split_folders, list_tables
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import ListedClass
from metalearn.datamodules.sources.published import MINI_IMAGENET, compare_splits

__all__ = ["MiniImageNetDataModule"]

CACHES = (
    "mini-imagenet-cache-{}.pkl",
    "mini-imagenet-cache-{}.pickle",
    "miniImageNet_category_split_{}.pickle",
    "miniImageNet_category_split_{}.pkl",
    "{}.pkl",
    "{}.pickle",
)
FORMS = (
    Form("images/ with train.csv, val.csv and test.csv", list_tables),
    Form("train/, val/ and test/ with a folder per class", list_split_folders),
    Form("mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl", partial(list_caches, patterns=CACHES)),
)


class MiniImageNetDataModule(ListedImages):
    """Few-shot episodes of miniImageNet, or of any data in its format.

    ``root`` may hold any of these; which it is is found by looking, and logged:

    - ``images/`` with ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename,label``);
    - ``train/``, ``val/`` (or ``validation/``) and ``test/``, each with a folder of images per class;
    - pickled caches ``mini-imagenet-cache-{train,val,test}.pkl`` (or ``-validation.pkl``): dicts of ``image_data``
      ``[n, H, W, 3]`` or ``[n, 3, H, W]`` in 0..255 and ``class_dict`` (for each class the numbers of its images), or of
      ``data`` and ``labels``, with ``catname2label`` where there are names. Names
      ``miniImageNet_category_split_{train_phase_train,val,test}.pickle`` and ``{train,val,test}.pkl`` are known too. They are
      read without running anything that they ask for, and mapped where they lie;
    - a zip or tar of one of these, which is ``root`` itself or the one archive in it. It is read in place; a compressed tar
      must be decompressed first.

    Each may lie in the only folder of ``root`` or of the archive. The same images give the same episodes in every form.
    Classes that are miniImageNet's in another split than the published one are named in the log.

    Args:
        root: the folder or archive.
        ways: classes a task, ``N``; or the least and the most, ``[5, 20]``: then each task draws its own.
        shots: support images a class, ``K``; or the least and the most.
        queries: query images a class, ``Q``; or the least and the most.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width; the whole image is resized, its aspect ratio is not kept.
        options: see :class:`EpisodeOptions`.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing, damaged, foreign or asks to run code, a class is empty or in two splits, or the cache cannot
            be written.
    """

    title = "miniImageNet"

    def __init__(
        self,
        root: str = "data/miniimagenet",
        ways: Count = 5,
        shots: Count = 1,
        queries: Count = 15,
        tasks_per_batch: int = 4,
        train_tasks: int = 1000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 84,
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

    def list_classes(self) -> Sequence[ListedClass]:
        remedy = "set data.root to it (miniImageNet's licence does not allow a download by us)"
        listed = find_classes(self.root, FORMS, self.title, remedy)
        compare_splits(f"{self.title} in {self.root}", listed, MINI_IMAGENET)
        return listed
