# %% [markdown]
"""
Constraints in the inner problem, by a smooth penalty
=====================================================

A shop sets a price for a buyer with a budget. Where a limit starts to bind, the exact hypergradient jumps.

The problem is ``min_x f(x, y*(x))``. The price of the first of three goods is ``x``, and ``-f = x y_1`` is what the
shop earns. The buyer takes the amounts ``y*(x) = argmin_y y'Qy/2 - (wish - price)'y``, with ``y >= 0`` and a sum of at
most 2.2.

The textbook derivative of ``y*`` solves the optimality conditions of the limits that bind (Fiacco, 1976). It says
nothing at a price where the set of these limits changes. A penalty of sharpness ``t`` makes the problem smooth, and
then any estimator will do.

Seen here: away from the jumps the error falls as ``1/t``. At a jump it does not fall: the smooth value lies between
the two sides. That matters, since the price that earns most lies on a jump.
"""

# %%
from itertools import combinations

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from metalearn.bilevel import BilevelProblem, BiO, Exact, Nesterov, hypergradient, nesterov, run

PRICES = 245  # the tests run 25
SHARPNESS = [3, 10, 30, 100, 300, 1000]  # the tests run [3, 30, 100]
OUTER_STEPS = 60  # the tests run 2

Q = torch.tensor([[1.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 1.0]]).double()
WISH = torch.tensor([2.5, 1.2, 0.5]).double()
LIMITS = torch.cat([torch.ones(1, 3), -torch.eye(3)]).double()  # LIMITS y <= BOUND
BOUND = torch.tensor([2.2, 0.0, 0.0, 0.0]).double()

# %% [markdown]
# The penalty of a limit is ``weight softplus(t excess)/t``. The weight must be above every multiplier of the limits,
# which 5 is here. ``batched`` solves the problem at many prices at once, each with its own ``y``.


# %%
def make_problem(t, prices, weight=5.0):
    """The smooth problem at this number of prices: ``x`` is ``[prices, 1]``, and ``y`` is ``[prices, 3]``."""

    def inner_loss(x, y, batch):
        penalty = weight / t * F.softplus(t * (LIMITS @ y - BOUND)).sum()
        return y @ Q @ y / 2 - WISH @ y + x[0] * y[0] + penalty

    return BilevelProblem(
        outer_loss=lambda x, y, batch: -x[0] * y[0],
        inner_loss=inner_loss,
        init_inner=lambda x: x.new_zeros(prices, 3),
        batched=prices,
        shared_x=False,
    )


def make_estimator(t, weight=5.0):
    """The penalty's curvature is at most ``weight t/4`` times the largest eigenvalue of ``LIMITS' LIMITS``."""
    curvatures = torch.linalg.eigvalsh(Q)
    largest = curvatures[-1] + weight * t / 4 * torch.linalg.matrix_norm(LIMITS, 2) ** 2
    step_size, momentum = nesterov(mu=float(curvatures[0]), L=float(largest))
    return Exact(inner=Nesterov(step_size=step_size, momentum=momentum, tolerance=1e-7, max_steps=100_000))


# %% [markdown]
# The exact solution tries every set of binding limits. One of them fulfils all the conditions: no limit is broken,
# and no multiplier is negative. The derivative of ``y*`` solves the same linear system.


# %%
def solve_exactly(x):
    """``y*``, ``dy*/dx`` and which limits bind, at one price ``[1]``."""
    for count in range(4):
        for binding in combinations(range(4), count):
            rows = LIMITS[list(binding)]
            system = torch.cat([torch.cat([Q, rows.T], 1), F.pad(rows, (0, count))])
            if int(torch.linalg.matrix_rank(system)) < 3 + count:
                continue
            right = torch.cat([WISH - F.pad(x, (0, 2)), BOUND[list(binding)]])
            y, multipliers = torch.linalg.solve(system, right).split([3, count])
            if bool((LIMITS @ y <= BOUND + 1e-12).all() and (multipliers >= 0).all()):
                slope = torch.linalg.solve(system, -torch.eye(3 + count).double()[0])[:3]
                return y, slope, binding
    raise ValueError(f"no set of limits fits x = {x}")


def measure_exactly(prices):
    """The exact hypergradients at prices ``[n, 1]``, what is earned, and the numbers of the prices behind which they jump."""
    solved = [solve_exactly(x) for x in prices]
    earned = torch.stack([x[0] * y[0] for x, (y, _, _) in zip(prices, solved, strict=True)])
    exact = torch.stack([-y[0] - x[0] * slope[0] for x, (y, slope, _) in zip(prices, solved, strict=True)])
    return exact, earned, [i for i in range(len(prices) - 1) if solved[i][2] != solved[i + 1][2]]


def learn_price(t, starts, steps):
    algorithm = BiO(estimator=make_estimator(t), step_size=0.03)
    return run(make_problem(t, len(starts)), algorithm, starts, steps=steps).x


def draw(prices, exact, smooth, jumps, errors, best):
    plt.style.use("metalearn.reports.plain")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    for number, piece in enumerate(torch.tensor_split(torch.arange(len(prices)), [i + 1 for i in jumps])):
        left.plot(prices[piece], exact[piece], color="black", linewidth=3, label=None if number else "exact")
    for t, line in zip(SHARPNESS[:5:2], [":", "--", "-"], strict=False):
        left.plot(prices, smooth[t], line, label=f"penalty, t = {t}")
    left.axvline(best, color="0.5", linewidth=1, label="price that earns most")
    left.set(
        xlabel="price x", ylabel="hypergradient of -(what is earned)", title="It jumps where a limit starts to bind"
    )
    left.legend()
    for label, marker, values in zip(["within 0.1 of a jump", "elsewhere"], "so", errors, strict=True):
        right.loglog(SHARPNESS, values, marker=marker, label=label)
    right.loglog(SHARPNESS, [errors[1][-1] * SHARPNESS[-1] / t for t in SHARPNESS], "k:", label="proportional to 1/t")
    right.set(
        xlabel="sharpness t of the penalty", ylabel="largest error of the hypergradient", title="Against the exact one"
    )
    right.legend()
    figure.savefig("smoothed_constraints.png")


# %% [markdown]
# Gradient steps on the smooth problem come to rest beside the jump, from three starts.

# %%
if __name__ == "__main__":
    prices = torch.linspace(0.005, 2.445, PRICES).double()[:, None]
    exact, earned, jumps = measure_exactly(prices)
    smooth = {
        t: hypergradient(make_problem(t, PRICES), prices, estimator=make_estimator(t)).value[:, 0] for t in SHARPNESS
    }
    near = ((prices - prices[jumps].T).abs() < 0.1).any(1)
    errors = [[float((smooth[t] - exact)[part].abs().max()) for t in SHARPNESS] for part in (near, ~near)]
    for t, close, far in zip(SHARPNESS, *errors, strict=True):
        print(f"t = {t}: largest error {close:.3f} within 0.1 of a jump, {far:.3f} elsewhere")
    learned = learn_price(100, torch.tensor([[0.3], [1.0], [1.8]]).double(), OUTER_STEPS)
    best, worst = float(prices[earned.argmax()]), float(measure_exactly(learned)[1].min() / earned.max())
    print(f"best price of the grid {best:.3f}; learned with t = 100: {', '.join(f'{float(x):.3f}' for x in learned)}")
    print(f"the learned prices earn {100 * worst:.1f} % of the most")
    draw(prices, exact, smooth, jumps, errors, best)
