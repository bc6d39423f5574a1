"""tieredImageNet (Ren et al. 2018): 608 classes of ImageNet in 34 categories, none of which is in two splits."""

from __future__ import annotations

from functools import partial

from metalearn.datamodules.episodes.arguments import FileArguments, Unpack, spell_out
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.sources.forms import SPLIT_FOLDERS, Form
from metalearn.datamodules.sources.published import PublishedCounts
from metalearn.datamodules.sources.tiered_files import list_ren

__all__ = ["TieredImageNetDataModule"]


class TieredImageNetDataModule(ListedImages):
    """Few-shot episodes of tieredImageNet: 351 classes for training, 97 for validation, 160 for test.

    ``root`` may hold any of these; which it is is found by looking, and logged:

    - ``{train,val,test}_images_png.pkl`` (a list of PNG files, as bytes or arrays) and ``{train,val,test}_labels.pkl`` (a dict
      of ``label_specific``, ``label_general``, ``label_specific_str`` and ``label_general_str``), Ren et al.'s files;
    - ``{train,val,test}_images.npz`` (``images`` ``[n, H, W, 3]``) with the same labels;
    - ``train/``, ``val/`` and ``test/``, each with a folder of images per class;
    - a zip or tar of the first or the last, read in place; a compressed tar must be decompressed first.

    Each may lie in the only folder of ``root`` or of the archive, such as ``tiered-imagenet/``. Groups are the categories
    (``label_general``). Pickles are read without running anything that they ask for, and mapped where they lie: of their
    gigabytes only what is being looked at is in memory, unless they are deflated in a zip.

    Args:
        root: the folder or archive.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing, damaged, foreign or asks to run code, a class is empty or in two splits, or the cache cannot
            be written.

    Example:
        >>> from metalearn.datamodules import TieredImageNetDataModule
        >>> data = TieredImageNetDataModule("data/tiered", ways=5, shots=5, queries=15)
        >>> data.image_spec.channels, data.image_spec.size
        (3, 84)
    """

    title = "tieredImageNet"
    forms = (
        Form("{train,val,test}_images_png.pkl and _labels.pkl", partial(list_ren, images="{}_images_png.pkl")),
        Form("{train,val,test}_images.npz and _labels.pkl", partial(list_ren, images="{}_images.npz")),
        SPLIT_FOLDERS,
    )
    remedy = "set data.root to it (ImageNet's terms do not allow a download by us)"
    published = PublishedCounts({"train": 351, "val": 97, "test": 160})

    @spell_out(FileArguments)
    def __init__(self, root: str = "data/tiered-imagenet", **arguments: Unpack[FileArguments]) -> None:
        super().__init__(root, **arguments)
