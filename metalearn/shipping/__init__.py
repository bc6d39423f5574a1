"""An adapted model on its way to its user: saved, loaded, exported; and modules from checkpoints of any class."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
