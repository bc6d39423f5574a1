"""Theory for its user: step sizes and bounds from constants, the constants of a module, and advice from both."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
