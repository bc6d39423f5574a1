"""Adapters to other meta-learning libraries, each of which is imported only when it is asked for."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
