"""The LightningModules, one public algorithm a file."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
