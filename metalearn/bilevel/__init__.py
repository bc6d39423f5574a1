"""Problem-based bilevel optimisation: ``min_x f(x, y*(x))`` with ``y*(x) = argmin_y g(x, y)``."""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
