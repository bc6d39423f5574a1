"""CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018): two splits of CIFAR-100's 100 classes."""

from __future__ import annotations

from metalearn.datamodules.episodes.arguments import FileArguments, Unpack, spell_out
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.sources.cifar_files import download_cifar, make_cifar_forms
from metalearn.datamodules.sources.published import CIFAR_FS, FC100, PublishedSplit

__all__ = ["CIFARFSDataModule", "FC100DataModule"]


class _Cifar100Classes(ListedImages):
    """The classes of CIFAR-100 in a split of their own."""

    remedy = "set data.root to it, or to an empty folder with download on"

    @spell_out(FileArguments, image_size=32)
    def __init__(
        self, root: str = "data/cifar100", *, download: bool = True, **arguments: Unpack[FileArguments]
    ) -> None:
        super().__init__(root, **arguments)
        self.download = download

    def prepare_data(self) -> None:
        """Download CIFAR-100 where ``root`` holds nothing, pack the images, and check the result."""
        if self.download and not self.root.is_file():
            download_cifar(self.root)
        super().prepare_data()


class CIFARFSDataModule(_Cifar100Classes):
    """Few-shot episodes of CIFAR-FS: 64 classes of CIFAR-100 for training, 16 for validation, 20 for test.

    The split is Bertinetto et al.'s (2019).

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
        download: fetch the official archive where ``root`` holds nothing.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing and cannot be downloaded, damaged, foreign or asks to run code, a class is
            empty or in two splits, or the cache cannot be written.

    Example:
        >>> from metalearn.datamodules import CIFARFSDataModule
        >>> data = CIFARFSDataModule("data/cifar100", ways=5, shots=1, queries=15)
        >>> data.image_spec.channels, data.image_spec.size
        (3, 32)
    """

    title = "CIFAR-FS"
    forms = make_cifar_forms(CIFAR_FS, ("CIFAR_FS_{}.pickle", "CIFAR_FS_{}.pkl"))
    published = PublishedSplit(CIFAR_FS)


class FC100DataModule(_Cifar100Classes):
    """Few-shot episodes of FC100: 60 classes of CIFAR-100 for training, 20 for validation, 20 for test.

    The split is Oreshkin et al.'s (2018), by superclasses: 12, 4 and 4.

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
        download: fetch the official archive where ``root`` holds nothing.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing and cannot be downloaded, damaged, foreign or asks to run code, a class is
            empty or in two splits, or the cache cannot be written.

    Example:
        >>> from metalearn.datamodules import FC100DataModule
        >>> data = FC100DataModule("data/cifar100", ways=5, shots=5, queries=15)
        >>> data.image_spec.channels, data.image_spec.size
        (3, 32)
    """

    title = "FC100"
    forms = make_cifar_forms(FC100, ("FC100_{}.pickle", "FC100_{}.pkl"))
    published = PublishedSplit(FC100)
