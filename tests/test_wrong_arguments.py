"""Every argument of every public class with wrong values: one line that names it, the constraint, and a remedy that helps."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

import metalearn
from metalearn import bilevel, datamodules, inner, theory
from metalearn.backbones import MLP
from metalearn.errors import MetalearnError
from tests.algorithms import KINDS

Q = bilevel.quadratic(4, 3, 5.0, 0)
STEPS = bilevel.GradientDescent(step_size=0.1, steps=2)
AID, BARE = bilevel.AID(inner=STEPS), bilevel.AID()
X = torch.zeros(3, dtype=torch.float64)
FEW = {"iterations": 2}
RATE = {**FEW, "step_size": 0.1}
OUTER = {"estimator": AID, "step_size": 0.001}
INNER_LOOP = {"L": 0.5, "steps": 2}


def network() -> nn.Module:
    return MLP(5, 4, [3])


NEEDED: dict[Callable[..., Any], dict[str, Any]] = {
    **{kind: {"backbone": network} for kind in KINDS},
    metalearn.BilevelModule: {"problem": Q.problem, "algorithm": bilevel.BiO(estimator=AID, step_size=0.001), "x": X},
    datamodules.ArrayEpisodes: {"x": torch.rand(40, 2).numpy(), "y": [0, 1] * 20},
    datamodules.FeatureEpisodes: {
        "data": datamodules.ArrayEpisodes(torch.rand(120, 4).numpy(), [0, 1, 2, 3, 4, 5] * 20), "encoder": network,
    },
    datamodules.FunctionEpisodes: {"function": lambda generator: None},
    datamodules.ImageCompletionEpisodes: {"images": datamodules.GlyphsDataModule()},
    datamodules.ImageFolderEpisodes: {"root": "images"},
    datamodules.MNISTCleaningDataModule: {"root": "mnist"},
    datamodules.NewsgroupsDataModule: {"root": "news"},
    datamodules.TokenEpisodes: {"sequences": {str(number): [[1, 2], [3]] for number in range(6)}},
    inner.LoRA: {"rank": 2},
    inner.Context: {"size": 2, "layers": "all"},
    bilevel.GradientDescent: {"step_size": 0.1, "steps": 2},
    bilevel.Nesterov: {"step_size": 0.1, "steps": 2, "momentum": 0.5},
    bilevel.HeavyBall: {"step_size": 0.1, "steps": 2, "momentum": 0.5},
    **dict.fromkeys((bilevel.CG, bilevel.NormalCG, bilevel.MinRes, bilevel.CGOrMinRes), FEW),
    **dict.fromkeys((bilevel.FixedPoint, bilevel.Neumann), RATE),
    bilevel.HeavyBallLinear: {**RATE, "momentum": 0.5},
    bilevel.L1: {"weight": 0.1},
    bilevel.GroupL1: {"weight": 0.1},
    bilevel.Box: {"low": 0.0, "high": 1.0},
    bilevel.AID: {"inner": STEPS},
    bilevel.ITD: {"inner": STEPS},
    bilevel.PZOBO: {"inner": STEPS},
    bilevel.StocBiONeumann: {"inner": STEPS, "eta": 0.1, "Q": 2},
    bilevel.Chunked: {"estimator": AID, "size": 2},
    bilevel.BiO: OUTER,
    bilevel.ProximalBiO: {**OUTER, "prox": bilevel.L1(0.1)},
    bilevel.MRBO: {"estimator": BARE, "step_size": 0.1, "inner_step_size": 0.1},
    bilevel.VRBO: {"estimator": BARE, "anchor": BARE, "step_size": 0.1, "inner_step_size": 0.1},
    bilevel.AccBiO: {"estimator": AID, "L_phi": 2.0, "mu_x": 1.0},
    bilevel.AccBiOBG: {"estimator": AID, "step_size": 0.1, "mu_x": 1.0},
    bilevel.Constants: {},
    bilevel.Sampled: {"outer": X, "inner": X},
    bilevel.BilevelProblem: {
        "outer_loss": Q.problem.outer_loss, "inner_loss": Q.problem.inner_loss, "init_inner": Q.problem.init_inner,
    },
    bilevel.quadratic: {"size": 4, "outer_size": 3, "kappa": 5.0, "seed": 0},
    bilevel.worst_case: {"size": 5, "mu_x": 0.01, "mu_y": 0.1},
    bilevel.simple_worst_case: {"size": 5, "mu_x": 0.01, "mu_y": 0.1},
    bilevel.cleaning_problem: {"features": 3},
    bilevel.regularization_problem: {"features": 3, "classes": 2},
    bilevel.run: {"problem": Q.problem, "algorithm": bilevel.BiO(**OUTER), "x": X, "steps": 1},
    bilevel.hypergradient: {"problem": Q.problem, "x": X},
    bilevel.solve_inner: {"problem": Q.problem, "x": X, "inner": STEPS},
    **{
        function: {"mu": 0.2, "L": 2.0}
        for function in (
            bilevel.nesterov, bilevel.heavy_ball, theory.best_step, theory.anil_convex_step, theory.anil_contraction,
            theory.accelerated_contraction, theory.heavy_ball_contraction,
        )
    },
    bilevel.inner_steps: {"contraction": 0.5, "factor": 10.0},
    theory.cg_error: {"iterations": 2, "mu": 0.2, "L": 2.0},
    theory.contraction: {"mu": 0.1, "L": 2.0, "step_size": 0.1},
    theory.inner_step_limit: {"L": 0.5},
    theory.maml_inner_step: INNER_LOOP,
    theory.anil_nonconvex_step: INNER_LOOP,
    theory.inner_growth: {**INNER_LOOP, "step_size": 0.1},
    theory.gradient_factor: {**INNER_LOOP, "step_size": 0.1, "rho": 1.0},
    theory.meta_smoothness: {**INNER_LOOP, "step_size": 0.1, "rho": 1.0, "gradient": 1.0},
    theory.outer_step: {"smoothness": 2.0},
    theory.maml_divergence_step: {**INNER_LOOP, "outer_step_size": 0.1},
    theory.bio_outer_step: {"L_phi": 2.0},
    theory.itd_bias: {"mu": 0.1, "L": 2.0, "L_xy": 1.0, "gradient": 1.0, "step_size": 0.1, "steps": 2},
    theory.neumann_bias: {"mu": 0.1, "eta": 0.1, "terms": 2, "gradient": 1.0},
    theory.pzobo_error: {"outer_size": 2, "directions": 3},
    theory.complexity: {"algorithm": "AccBiO", "kappa": 10.0, "eps": 0.1, "mu_x": 0.1},
    theory.complexity_table: {},
}  # fmt: skip
"""What each cannot do without."""
FAMILIES = (
    L.LightningModule, L.LightningDataModule, inner.UpdateRule, inner.Adapter, bilevel.InnerSolver, bilevel.LinearSolver,
    bilevel.Estimator, bilevel.Algorithm, bilevel.Prox,
)  # fmt: skip
BASES = {
    *FAMILIES, metalearn.MetaModule, datamodules.BilevelDataModule, datamodules.EpisodicDataModule, datamodules.ClassEpisodes,
    datamodules.ImageEpisodes,
}  # fmt: skip
"""Classes to derive from, whose arguments are those of the derived ones."""
OTHERS = (
    datamodules.EpisodeOptions, metalearn.Conv4, metalearn.LSTMClassifier, metalearn.MLP, metalearn.ResNet12,
    metalearn.TransformerClassifier,
)  # fmt: skip
MAY_BE_NEGATIVE = {"axis", "dim", "high", "initial_log_penalty", "log_penalty_range", "low", "step"}
FREE_TEXT = {"cache_dir", "head", "inner_optimizer", "labels", "loss", "root", "targets", "test_tasks_file", "weights"}
"""Texts that are no choice between a few."""


def list_public() -> list[Callable[..., Any]]:
    rooms = (metalearn, datamodules, bilevel, inner)
    exported = {kind for room in rooms for kind in map(vars(room).get, room.__all__) if isinstance(kind, type)}
    classes = {kind for kind in exported if issubclass(kind, FAMILIES)} - BASES
    return sorted({*classes, *OTHERS, *NEEDED}, key=lambda kind: kind.__name__)


def list_wrong(parameter: inspect.Parameter) -> Iterator[Any]:
    """Values that cannot be right for an argument of this kind."""
    kind, name = str(parameter.annotation), parameter.name
    if name == "splits":  # of classes that the data name
        return
    if re.search(r"\bint\b|\bCount\b", kind):
        yield from (2.5, "a", math.nan, 10**40)
        if name not in MAY_BE_NEGATIVE and "seed" not in name:
            yield -1
    elif re.search(r"\bfloat\b|InnerLR", kind):
        yield from (math.nan, "a")
        if name not in MAY_BE_NEGATIVE:
            yield -1.0
    elif kind == "bool" or parameter.annotation is bool:
        yield from ("no", None)
    elif isinstance(parameter.default, str) and name not in FREE_TEXT:
        yield from ("zzz", 3)
    if name == "root":
        yield from (3, None)


CASES = [
    pytest.param(kind, parameter, id=f"{kind.__name__}-{parameter.name}")
    for kind in list_public()
    for parameter in inspect.signature(kind).parameters.values()
    if any(True for _ in list_wrong(parameter))
]


def build(kind: Callable[..., Any], **changed: Any) -> Any:
    needed = {name: value() if value is network else value for name, value in NEEDED.get(kind, {}).items()}
    if "tolerance" in changed:  # stands in the place of a number of steps
        needed = {name: value for name, value in needed.items() if name not in ("steps", "iterations")}
    return kind(**{**needed, **changed})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))


@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_a_wrong_value_is_one_line_with_a_remedy_that_helps(
    kind: Callable[..., Any], parameter: inspect.Parameter
) -> None:
    for value in list_wrong(parameter):
        with pytest.raises(MetalearnError) as caught:
            build(kind, **{parameter.name: value})
        line = str(caught.value)
        assert "\n" not in line
        assert re.search(rf"\b{parameter.name}\b", line), line
        assert ", but " in line, line
        assert "; " in line, line
        check_remedy(kind, parameter, line.rpartition("; ")[2])


def check_remedy(kind: Callable[..., Any], parameter: inspect.Parameter, remedy: str) -> None:
    """What the line says must be usable: a value is passed, what may be left out has a default."""
    name = parameter.name
    if remedy.startswith(("leave it out", "leave it None")):
        assert parameter.default is not inspect.Parameter.empty, remedy
        return
    words = remedy.removeprefix("use ").removeprefix(f"{name}=")
    for text in (words, words.partition(" or ")[0].rstrip(","), words.partition(", ")[0], words.partition(" for ")[0]):
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            continue
        build(kind, **{name: value})
        return
    assert remedy in NO_VALUE or remedy.startswith(("lower it", "give ")), remedy


NO_VALUE = {"use 1/L"}


def test_every_public_class_is_tried() -> None:
    for kind in list_public():
        build(kind)
