# %% [markdown]
"""
How strong should augmentation be?
==================================

Training digits stand upright. Digits to come are turned and shifted. Two strengths are learned, and a grid agrees.

The problem is ``min_x f(x, y*(x))``. The strengths ``x`` are the logarithms of the largest angle and the largest
shift. The weights ``y*(x)`` fit a linear classifier to training digits that are moved by up to these strengths, and
``f`` is its loss on validation digits.

A random angle is the strength times a number ``u`` that is drawn once, from -1 to 1. So the loss follows the strength
smoothly, and a hypergradient exists. Lorraine, Vicol and Duvenaud (2020, arXiv 1911.02590) learn a whole augmentation
network in this way.

Seen here: from a start far below and from one far above, both strengths come to the optimum of the grid.
"""

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from metalearn.bilevel import AID, CG, BilevelProblem, BiO, Fixed, Nesterov, run, solve_inner
from metalearn.experiments.student import spread

SEEDS = 5  # the tests run 1
OUTER_STEPS = 50  # the tests run 2
ANGLES = [3.0, 8.0, 15.0, 22.0, 30.0, 40.0, 60.0]  # the tests run [10.0, 30.0]
SHIFTS = [0.1, 0.4, 0.7, 1.0, 1.4, 2.0]  # the tests run [0.2, 1.0]

# %% [markdown]
# A digit has 8 x 8 pixels, which are interpolated linearly. The digits to come are turned by up to 30 degrees and
# shifted by up to a pixel.


# %%
def move(images, angles, shifts):
    """Turn and shift images: ``[n, 8, 8]``, degrees ``[n]`` and pixels ``[n, 2]``; returns ``[n, 64]``."""
    place = (torch.arange(8).to(images) - 3.5) / 4
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    sin, cos = (wave(angles * math.pi / 180)[:, None, None] for wave in (torch.sin, torch.cos))
    turned = torch.stack([cos * columns - sin * rows, sin * columns + cos * rows], -1)
    return F.grid_sample(images[:, None], turned + shifts[:, None, None] / 4, align_corners=False).flatten(1)


def draw_data(seed, train=100, val=200, copies=4):
    """Upright training digits with the numbers that move them; moved validation and test digits."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).double() / 16, torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=generator)
    training, *others = order[:train].repeat(copies), order[train : train + val], order[train + val :]

    def draw_numbers(count):
        return 2 * torch.rand(count, 3, generator=generator).double() - 1

    def draw_moved(chosen):
        u = draw_numbers(len(chosen))
        return move(images[chosen], 30 * u[:, 0], u[:, 1:]), labels[chosen]

    return (images[training], labels[training], draw_numbers(len(training))), *map(draw_moved, others)


# %% [markdown]
# ``prepare`` moves the images once for all inner steps on them, and the hypergradient goes back through it once.


# %%
def augment(x, batch):
    (angle, shift), (images, labels, u) = x.exp(), batch
    return move(images, angle * u[:, 0], shift * u[:, 1:]), labels


def measure_loss(x, y, examples):
    inputs, labels = examples
    return F.cross_entropy(inputs @ y["weight"] + y["bias"], labels)


def make_problem(train, val, problems=1, shared_batch=True):
    """``problems`` pairs of strengths at once, on one set of data or on a set each."""
    return BilevelProblem(
        outer_loss=measure_loss,
        inner_loss=lambda x, y, moved: measure_loss(x, y, moved) + 0.0025 * sum(p.square().sum() for p in y.values()),
        init_inner=lambda x: {"weight": x.new_zeros(problems, 64, 10), "bias": x.new_zeros(problems, 10)},
        stream=Fixed(outer=val, inner=train),
        prepare=augment,
        batched=problems,
        shared_x=False,
        shared_batch=shared_batch,
    )


def solver(steps):
    return Nesterov(step_size=0.15, momentum=0.95, steps=steps)


def learn_strengths(data, starts, steps):
    """The strengths after every step, ``[steps, seeds, starts, 2]``."""
    train, val = (tuple(map(torch.stack, zip(*(d[i] for d in data for _ in starts), strict=True))) for i in (0, 1))
    algorithm = BiO(estimator=AID(inner=solver(30), solver=CG(iterations=10)), step_size=1.0)
    problem, x = make_problem(train, val, len(train[0]), shared_batch=False), starts.log().repeat(len(data), 1)
    path = []
    run(problem, algorithm, x, steps=steps, callback=lambda state, _: path.append(state["x"].exp()))
    return torch.stack(path).view(steps, len(data), len(starts), 2)


def judge(data, strengths, steps=250):
    """Validation loss and test accuracy at strengths ``[n, 2]``, each trained to convergence."""
    train, val, (inputs, labels) = data
    weights = solve_inner(make_problem(train, val, len(strengths)), strengths.log(), inner=solver(steps))
    models = [dict(zip(weights, tensors, strict=True)) for tensors in zip(*weights.values(), strict=True)]
    hits = [(inputs @ y["weight"] + y["bias"]).argmax(1) == labels for y in models]
    return torch.stack([measure_loss(None, y, val) for y in models]), torch.stack(hits).double().mean(1)


def draw(losses, path, scores):
    plt.style.use("metalearn.reports.plain")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), width_ratios=[5, 2])
    shades = left.contourf(SHIFTS, ANGLES, losses, levels=14, cmap="cividis")
    figure.colorbar(shades, ax=left, label="validation loss")
    for start, marker, name in zip(path.unbind(1), "os", ("too weak", "too strong"), strict=True):
        left.plot(
            start[:, 1], start[:, 0], color="white", marker=marker, markersize=4, linewidth=1, label=f"start {name}"
        )
    left.plot(*path[-1, 0].flip(0), "*", color="#d6604d", markersize=15, label="learned")
    left.set(xscale="log", yscale="log", xlabel="largest shift (pixels)", ylabel="largest angle (degrees)")
    for axis, ticks in ((left.xaxis, SHIFTS), (left.yaxis, ANGLES)):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    left.set_title("Two runs of seed 0, on its grid")
    left.legend(loc="upper left", labelcolor="white")
    for place, score in enumerate(scores.values()):
        right.errorbar(place, score.mean, score.ci95, fmt="o", capsize=4, color="C0")
    right.set(xticks=range(len(scores)), xticklabels=list(scores), xlim=(-0.5, len(scores) - 0.5))
    right.set(xlabel="strengths", ylabel="test accuracy (%)", title=f"{SEEDS} seeds, 95 % intervals")
    figure.savefig("augmentation_strength.png")


# %%
if __name__ == "__main__":
    data = [draw_data(seed) for seed in range(SEEDS)]
    starts = torch.tensor([[5.0, 0.2], [50.0, 1.8]]).double()
    path = learn_strengths(data, starts, OUTER_STEPS)
    grid = torch.cartesian_prod(torch.tensor(ANGLES), torch.tensor(SHIFTS)).double()
    tried = [torch.cat([grid, learned, torch.full((1, 2), 1e-3).double()]) for learned in path[-1]]
    losses, accuracies = zip(*map(judge, data, tried), strict=True)
    chosen = [loss[: len(grid)].argmin() for loss in losses]
    for seed, (best, loss) in enumerate(zip(chosen, losses, strict=True)):
        print(
            f"seed {seed}: the grid's best {grid[best].numpy().round(2)} has the loss {loss[best]:.4f}; learned ",
            end="",
        )
        print(*[f"{x.numpy().round(2)} {value:.4f}" for x, value in zip(path[-1, seed], loss[-3:-1], strict=True)])
    scores = {
        "none": [accuracy[-1] for accuracy in accuracies],
        "learned": [accuracy[-3] for accuracy in accuracies],
        "grid": [accuracy[best] for best, accuracy in zip(chosen, accuracies, strict=True)],
    }
    scores = {name: spread([100 * float(value) for value in values]) for name, values in scores.items()}
    print(
        "test accuracy:", ", ".join(f"{name} {score.mean:.1f} % ± {score.ci95:.1f}" for name, score in scores.items())
    )
    draw(losses[0][: len(grid)].view(len(ANGLES), -1), torch.cat([starts[None], path[:, 0]]), scores)
