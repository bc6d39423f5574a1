"""Estimators of the hypergradient, one a file."""

from metalearn.bilevel.estimators.aid import AID
from metalearn.bilevel.estimators.base import Estimate, Estimator
from metalearn.bilevel.estimators.chunked import Chunked
from metalearn.bilevel.estimators.exact import Exact
from metalearn.bilevel.estimators.itd import ITD
from metalearn.bilevel.estimators.pzobo import PZOBO
from metalearn.bilevel.estimators.stoc_bio import StocBiONeumann, shrinking_sizes

__all__ = ["AID", "ITD", "PZOBO", "Chunked", "Estimate", "Estimator", "Exact", "StocBiONeumann", "shrinking_sizes"]
