"""Episodic LightningDataModules: every batch is a :class:`metalearn.Episode`."""

if __name__ != "metalearn.datamodules":
    raise ImportError("the package is called metalearn.datamodules; write: from metalearn.datamodules import ...")

from metalearn.datamodules.base import EpisodicDataModule
from metalearn.datamodules.cifar import CIFARFSDataModule, FC100DataModule
from metalearn.datamodules.cub import CUB200DataModule
from metalearn.datamodules.folder import ImageFolderEpisodes
from metalearn.datamodules.glyphs import GlyphsDataModule
from metalearn.datamodules.images import ImageSpec
from metalearn.datamodules.miniimagenet import MiniImageNetDataModule
from metalearn.datamodules.omniglot import OmniglotDataModule
from metalearn.datamodules.sinusoid import SinusoidDataModule
from metalearn.datamodules.tiered import TieredImageNetDataModule

__all__ = [
    "CIFARFSDataModule",
    "CUB200DataModule",
    "EpisodicDataModule",
    "FC100DataModule",
    "GlyphsDataModule",
    "ImageFolderEpisodes",
    "ImageSpec",
    "MiniImageNetDataModule",
    "OmniglotDataModule",
    "SinusoidDataModule",
    "TieredImageNetDataModule",
]
