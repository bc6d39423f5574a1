"""Outer algorithms, each a pure step from state to state."""

from metalearn.bilevel.algorithms.accelerated import AccBiO, AccBiOBG, acc_bio, acc_bio_bg, accelerated_aid
from metalearn.bilevel.algorithms.base import Algorithm, State
from metalearn.bilevel.algorithms.bio import BiO, aid_bio, itd_bio, stoc_bio
from metalearn.bilevel.algorithms.mrbo import MRBO
from metalearn.bilevel.algorithms.proximal import ProximalBiO
from metalearn.bilevel.algorithms.running import Record, Run, run
from metalearn.bilevel.algorithms.vrbo import VRBO

__all__ = [
    "MRBO",
    "VRBO",
    "AccBiO",
    "AccBiOBG",
    "Algorithm",
    "BiO",
    "ProximalBiO",
    "Record",
    "Run",
    "State",
    "acc_bio",
    "acc_bio_bg",
    "accelerated_aid",
    "aid_bio",
    "itd_bio",
    "run",
    "stoc_bio",
]
