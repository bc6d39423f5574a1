"""How loose certificates are: on made examples against the dense solution, and on real data as numbers beside the hypergradient.

python benchmarks/certificates.py --mnist DIR --newsgroups DIR    (the numbers of docs/background/bilevel.md)
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    BilevelProblem,
    BiO,
    Exact,
    GradientDescent,
    Nesterov,
    certify,
    cleaning_problem,
    hypergradient,
    regularization_problem,
    run,
)
from metalearn.datamodules import MNISTCleaningDataModule, NewsgroupsDataModule


def examples(seed: int, count: int = 30, features: int = 5, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64)
    return torch.arange(count), x, torch.randint(0, classes, (count,), generator=generator)


def made() -> None:
    """Hyper-cleaning of 30 examples in float64."""
    print("| mu of g | inner steps, iterations | error | certificate / error | certify / error |")
    print("|---:|---|---:|---:|---:|")
    x = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for l2 in (0.3, 0.05, 0.001):
        problem = cleaning_problem(examples(0), examples(1), classes=3, l2=l2)
        exact = Exact(inner=Nesterov(step_size=0.3, momentum=0.9, tolerance=1e-12, max_steps=100_000))
        expected = hypergradient(problem, x, None, exact).value
        for steps, iterations in ((0, 1), (3, 3), (30, 10)):
            aid = AID(inner=GradientDescent(step_size=0.3, steps=steps), solver=CG(iterations=iterations))
            estimate = hypergradient(problem, x, None, aid)
            error, plain = float((estimate.value - expected).norm()), estimate.diagnostics.certificate
            assert plain is not None
            sharp = float(certify(problem, x, estimate).upper)
            print(
                f"| {2 * l2:g} | {steps}, {iterations} | {error:.2g} | {float(plain) / error:.2g} | {sharp / error:.3f} |"
            )


def real(name: str, problem: BilevelProblem, x: Tensor, algorithm: BiO, steps: int) -> None:
    """The last step's certificates, in float32."""
    plain = run(problem, algorithm, x, steps=steps).history[-1]
    sharp = run(problem, dataclasses.replace(algorithm, certify=True), x, steps=steps).history[-1]
    print(f"| {name} | {plain.norm:.2g} | {plain.certificate or 0:.2g} | {sharp.certificate or 0:.2g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mnist", help="MNIST's folder")
    parser.add_argument("--newsgroups", help="the folder of 20 Newsgroups' archive")
    parser.add_argument("--steps", type=int, default=10, help="outer steps on real data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made()
    print("\n| real data, float32 | norm of the hypergradient | certificate | certify |\n|---|---:|---:|---:|")
    if options.mnist:
        images = MNISTCleaningDataModule(options.mnist, corruption=0.4)
        for l2 in (0.001, 0.1):
            problem = cleaning_problem(images.part("train"), images.part("val"), l2=l2)
            aid = AID(inner=GradientDescent(step_size=0.3, steps=5), solver=CG(iterations=3))
            start = torch.zeros(len(images.part("train").y))
            real(f"MNIST, mu = {2 * l2:g}", problem, start, BiO(estimator=aid, step_size=3e4), options.steps)
    if options.newsgroups:
        posts = NewsgroupsDataModule(options.newsgroups)
        problem = regularization_problem(posts.part("train"), posts.part("val"))
        aid = AID(inner=Nesterov(step_size=50.0, momentum=0.95, steps=40), solver=CG(iterations=30))
        start = torch.full((len(posts.words),), -9.0)
        real("20 Newsgroups, penalties e^-9", problem, start, BiO(estimator=aid, step_size=1e3), options.steps)


if __name__ == "__main__":
    main()
