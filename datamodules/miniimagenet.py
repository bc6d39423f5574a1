"""miniImageNet (Ravi and Larochelle 2017): 100 classes of ImageNet, 64 for training, 16 for validation, 20 for test."""

from __future__ import annotations

from functools import partial

from metalearn.datamodules.episodes.arguments import FileArguments, Unpack, spell_out
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.sources.caches import list_caches
from metalearn.datamodules.sources.forms import SPLIT_FOLDERS, Form
from metalearn.datamodules.sources.published import MINI_IMAGENET, PublishedSplit
from metalearn.datamodules.sources.split_tables import list_tables

__all__ = ["MiniImageNetDataModule"]

CACHES = (
    "mini-imagenet-cache-{}.pkl",
    "mini-imagenet-cache-{}.pickle",
    "miniImageNet_category_split_{}.pickle",
    "miniImageNet_category_split_{}.pkl",
    "{}.pkl",
    "{}.pickle",
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

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing, damaged, foreign or asks to run code, a class is empty or in two splits, or the cache cannot
            be written.

    Example:
        >>> from metalearn.datamodules import MiniImageNetDataModule
        >>> data = MiniImageNetDataModule("data/miniimagenet", ways=5, shots=5, queries=15)
        >>> data.image_spec.channels, data.image_spec.size
        (3, 84)
    """

    title = "miniImageNet"
    forms = (
        Form("images/ with train.csv, val.csv and test.csv", list_tables),
        SPLIT_FOLDERS,
        Form("mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl", partial(list_caches, patterns=CACHES)),
    )
    remedy = "set data.root to it (miniImageNet's licence does not allow a download by us)"
    published = PublishedSplit(MINI_IMAGENET)

    @spell_out(FileArguments)
    def __init__(self, root: str = "data/miniimagenet", **arguments: Unpack[FileArguments]) -> None:
        super().__init__(root, **arguments)
