"""Problem-based bilevel optimisation: ``min_x f(x, y*(x))`` with ``y*(x) = argmin_y g(x, y)``."""

from metalearn.bilevel.algorithms import (
    MRBO,
    VRBO,
    AccBiO,
    AccBiOBG,
    Algorithm,
    BiO,
    ProximalBiO,
    Record,
    Run,
    State,
    acc_bio,
    acc_bio_bg,
    accelerated_aid,
    aid_bio,
    itd_bio,
    run,
    stoc_bio,
)
from metalearn.bilevel.certificates import Certificate, error_bound
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.estimators import (
    AID,
    ITD,
    PZOBO,
    Chunked,
    Estimate,
    Estimator,
    Exact,
    StocBiONeumann,
    shrinking_sizes,
)
from metalearn.bilevel.hypergradients import Diagnostics, Hypergradient, certify, hypergradient
from metalearn.bilevel.implicit import solve_inner
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import BilevelProblem, Constants, parameters_as_inner
from metalearn.bilevel.problems.cleaning import (
    cleaning_constants,
    cleaning_problem,
    detection_auroc,
    linear_logits,
)
from metalearn.bilevel.problems.drawn import Drawn
from metalearn.bilevel.problems.quadratics import Quadratic, quadratic
from metalearn.bilevel.problems.regularization import regularization_constants, regularization_problem
from metalearn.bilevel.problems.sparse import SparseRows
from metalearn.bilevel.problems.worst_cases import WorstCase, simple_worst_case, worst_case
from metalearn.bilevel.solvers.indefinite import CGOrMinRes, MinRes, NormalCG
from metalearn.bilevel.solvers.inner import GradientDescent, HeavyBall, InnerSolver, Nesterov
from metalearn.bilevel.solvers.linear import CG, FixedPoint, HeavyBallLinear, LinearSolver, Neumann
from metalearn.bilevel.solvers.prox import L1, Box, GroupL1, Prox
from metalearn.bilevel.solvers.step_sizes import heavy_ball, nesterov, smoothness_of_phi
from metalearn.bilevel.streams import Draw, Fixed, Sampled, Stream

__all__ = [
    "AID",
    "CG",
    "ITD",
    "L1",
    "MRBO",
    "PZOBO",
    "VRBO",
    "AccBiO",
    "AccBiOBG",
    "Algorithm",
    "BiO",
    "BilevelProblem",
    "Box",
    "CGOrMinRes",
    "Certificate",
    "Chunked",
    "Constants",
    "Diagnostics",
    "Draw",
    "Drawn",
    "Estimate",
    "Estimator",
    "Exact",
    "Fixed",
    "FixedPoint",
    "GradientDescent",
    "GroupL1",
    "HeavyBall",
    "HeavyBallLinear",
    "Hypergradient",
    "InnerSolver",
    "LinearSolver",
    "MinRes",
    "Nesterov",
    "Neumann",
    "NormalCG",
    "OracleCounts",
    "Oracles",
    "Prox",
    "ProximalBiO",
    "Quadratic",
    "Record",
    "Run",
    "Sampled",
    "SparseRows",
    "State",
    "StocBiONeumann",
    "Stream",
    "WorstCase",
    "acc_bio",
    "acc_bio_bg",
    "accelerated_aid",
    "aid_bio",
    "certify",
    "cleaning_constants",
    "cleaning_problem",
    "detection_auroc",
    "error_bound",
    "heavy_ball",
    "hypergradient",
    "itd_bio",
    "linear_logits",
    "nesterov",
    "parameters_as_inner",
    "quadratic",
    "regularization_constants",
    "regularization_problem",
    "run",
    "shrinking_sizes",
    "simple_worst_case",
    "smoothness_of_phi",
    "solve_inner",
    "stoc_bio",
    "worst_case",
]
