"""Gradient-based meta-learning and bilevel optimisation on PyTorch Lightning."""

from importlib.util import find_spec
from os.path import dirname

from metalearn.lazy import offer

if find_spec("metalearn.datamodules") is None:  # which lies beside this folder until an installation joins the two
    raise ImportError(
        f"metalearn is imported from a checkout that is not installed in place, {dirname(__path__[0])}; "
        "run `pip install -e .` in that folder, or start Python in another one"
    )

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = offer(__name__)
