"""Episodic LightningDataModules: every batch is a :class:`metalearn.Episode`."""

if __name__ != "metalearn.datamodules":
    raise ImportError("the package is called metalearn.datamodules; write: from metalearn.datamodules import ...")

from metalearn.datamodules.arrays import ArrayEpisodes
from metalearn.datamodules.cifar import CIFARFSDataModule, FC100DataModule
from metalearn.datamodules.cub import CUB200DataModule
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.episodes.classes import ClassEpisodes
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.folder import ImageFolderEpisodes
from metalearn.datamodules.functions import FunctionEpisodes
from metalearn.datamodules.glyphs import GlyphsDataModule
from metalearn.datamodules.levels.base import BilevelDataModule, Examples, LevelBatch, TermBatches
from metalearn.datamodules.miniimagenet import MiniImageNetDataModule
from metalearn.datamodules.mnist_cleaning import MNISTCleaningDataModule
from metalearn.datamodules.newsgroups import NewsgroupsDataModule
from metalearn.datamodules.omniglot import OmniglotDataModule
from metalearn.datamodules.sinusoid import SinusoidDataModule
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.tiered import TieredImageNetDataModule

__all__ = [
    "ArrayEpisodes",
    "BilevelDataModule",
    "CIFARFSDataModule",
    "CUB200DataModule",
    "ClassEpisodes",
    "EpisodeOptions",
    "EpisodicDataModule",
    "Examples",
    "FC100DataModule",
    "FunctionEpisodes",
    "GlyphsDataModule",
    "ImageEpisodes",
    "ImageFolderEpisodes",
    "ImageSpec",
    "LevelBatch",
    "MNISTCleaningDataModule",
    "MiniImageNetDataModule",
    "NewsgroupsDataModule",
    "OmniglotDataModule",
    "SinusoidDataModule",
    "TermBatches",
    "TieredImageNetDataModule",
]
