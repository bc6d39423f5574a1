# %% [markdown]
"""
A hypergradient against its closed form
=======================================

How many inner steps and products does a hypergradient need? A quadratic problem knows the answer.

The problem is ``min_x f(x, y*(x))`` with ``y*(x) = argmin_y g(x, y)``. Its hypergradient is
``grad_x f + C' A^-1 grad_y f``, where ``A`` is the Hessian of ``g`` and ``C`` says how ``y*`` follows ``x``.
Three estimators are held against that formula.
"""

# %%
import matplotlib.pyplot as plt
import torch

from metalearn.bilevel import AID, CG, ITD, GradientDescent, Neumann, hypergradient, quadratic

INNER_STEPS = [1, 2, 5, 10, 20, 50, 100, 200]  # the tests run [1, 5]

# %% [markdown]
# ``quadratic`` draws a problem in float64. Here the condition number of ``A`` is 20.

# %%
example = quadratic(size=30, outer_size=10, kappa=20.0, seed=0)
x = torch.ones(10, dtype=torch.float64)
exact = example.hypergradient(x)

# %% [markdown]
# ITD goes back through the inner steps. AID solves a linear system at the last iterate: here by eight iterations of
# conjugate gradients, and by eight terms of a Neumann series.


# %%
def error(make_estimator, steps):
    estimator = make_estimator(GradientDescent(step_size=1.0, steps=steps))
    value = hypergradient(example.problem, x, estimator=estimator).value
    return float((value - exact).norm() / exact.norm())


estimators = {
    "ITD": lambda inner: ITD(inner=inner),
    "AID, 8 of conjugate gradients": lambda inner: AID(inner=inner, solver=CG(iterations=8)),
    "AID, 8 Neumann terms": lambda inner: AID(inner=inner, solver=Neumann(step_size=1.0, iterations=8)),
}
errors = {name: [error(make, steps) for steps in INNER_STEPS] for name, make in estimators.items()}
for name, values in errors.items():
    print(f"{name}: relative error {values[-1]:.1e} after {INNER_STEPS[-1]} inner steps")

# %% [markdown]
# More inner steps bring ITD to the exact value. AID keeps the error of its linear solver, however well ``y*`` is known.

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
for (name, values), marker in zip(errors.items(), "os^", strict=True):
    axis.loglog(INNER_STEPS, values, marker=marker, label=name)
axis.set(xlabel="inner steps", ylabel="relative error of the hypergradient", title="Distance from the closed form")
axis.legend()
figure.savefig("hypergradient_error.png")
