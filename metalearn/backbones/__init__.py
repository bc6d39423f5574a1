"""Networks in common use for few-shot learning. Each ends in a linear layer called ``head``."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
