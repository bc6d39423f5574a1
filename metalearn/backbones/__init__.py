"""Networks in common use for few-shot learning, and those of other libraries by name. The last layer is called ``head``."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
