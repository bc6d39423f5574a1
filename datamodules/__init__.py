"""Episodic LightningDataModules: every batch is a :class:`metalearn.Episode`."""

if __name__ != "metalearn.datamodules":
    raise ImportError("the package is called metalearn.datamodules; write: from metalearn.datamodules import ...")

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
