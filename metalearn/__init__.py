"""Gradient-based meta-learning and bilevel optimisation on PyTorch Lightning."""

from metalearn.lazy import offer

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = offer(__name__)
