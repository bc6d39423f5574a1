"""How one task is adapted, and how many are at once."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
