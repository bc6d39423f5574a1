# %% [markdown]
"""
Missing modalities: which one needs more supervision?
=====================================================

One half of a digit is missing more often than the other. A published rule for the weights of their losses does not help here.

Sun et al. (2024, RedCore, AAAI) move the weights by a rule, without a hypergradient. The relative advantage of a
modality is ``(mean - loss_i)/mean``, and its weight falls in proportion. They report more robustness to missing rates
that are large, or that differ.

That is not seen here, where only their rule is tried and not their network. Test accuracy with the rule is that of
equal weights, within the intervals. The rule reads training losses. That of the rare half is small, since it is fitted
to few examples, so the rule takes it for the half that is ahead. On validation examples the two are alike. The
hypergradient comes to the optimum of a grid. What it gains in accuracy is small, too.

The problem is ``min_x f(x, y*(x))``. The upper half is missing in 20 % of the examples, the lower half in 80 %. A
classifier adds up what the halves say that are there. Its weights ``y*`` minimise
``(1 - share) loss_upper + share loss_lower``, where each is the loss of that half alone, on the examples that have it.
The number ``x`` gives ``share = sigmoid(x)``, and ``f`` is the loss on validation examples.
"""

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from metalearn.bilevel import AID, CG, BilevelProblem, BiO, Fixed, Nesterov, run, solve_inner
from metalearn.experiments.student import spread

SEEDS = 10  # the tests run 2
OUTER_STEPS = 40  # the tests run 2
SHARES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]  # the tests run [0.1, 0.5]
AS_TRAINED, BALANCED = "missing as in training", "missing equally often"


def hide(images, labels, rates, generator):
    """Examples that lack halves at these rates: both halves, which of them are there (at least one), and the label."""
    there = torch.rand(len(images), 2, generator=generator).double() > torch.tensor(rates)
    neither = ~there.any(1)
    there[neither, torch.randint(2, (int(neither.sum()),), generator=generator)] = True
    return images[:, :4].flatten(1), images[:, 4:].flatten(1), there.double(), labels


def draw_data(seed, train=300, val=300):
    """Training examples, and validation and test examples that lack halves in the two ways."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).double() / 16, torch.from_numpy(digits.target).long()
    sizes = [train, val, len(images) - train - val]
    training, validation, test = torch.randperm(len(images), generator=generator).split(sizes)

    def draw(chosen, rates):
        return hide(images[chosen], labels[chosen], rates, generator)

    ways = {AS_TRAINED: (0.2, 0.8), BALANCED: (0.5, 0.5)}
    evaluated = {name: (draw(validation, rates), draw(test, rates)) for name, rates in ways.items()}
    return draw(training, ways[AS_TRAINED]), evaluated


# %% [markdown]
# The inner problem is strongly convex. ``batched`` solves it for all seeds at once.


# %%
def stack(parts):
    return tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))


def add_up(y, batch):
    """The logits of both halves, each where it is there: ``[n, 10]``."""
    upper, lower, there, _ = batch
    return there[:, :1] * (upper @ y["upper"] + y["upper_bias"]) + there[:, 1:] * (lower @ y["lower"] + y["lower_bias"])


def measure_loss(x, y, batch):
    return F.cross_entropy(add_up(y, batch), batch[3])


def measure_halves(y, batch):
    """The loss of each half alone, ``[2]``, on the examples that have it."""
    upper, lower, there, labels = batch
    logits = upper @ y["upper"] + y["upper_bias"], lower @ y["lower"] + y["lower_bias"]
    losses = torch.stack([F.cross_entropy(each, labels, reduction="none") for each in logits], 1)
    return (losses * there).sum(0) / there.sum(0)


def inner_loss(x, y, batch, ridge=0.01):
    share = x.sigmoid()
    weights = torch.stack([1 - share, share])
    return weights @ measure_halves(y, batch) + ridge / 2 * sum(part.square().sum() for part in y.values())


def init_inner(x):
    shapes = {"upper": (32, 10), "upper_bias": (10,), "lower": (32, 10), "lower_bias": (10,)}
    return {name: x.new_zeros(len(x), *shape) for name, shape in shapes.items()}


def make_problem(train, val=None):
    """One problem a seed: ``x`` is ``[seeds]``."""
    options = {"stream": Fixed(outer=val, inner=train), "batched": len(train[0]), "shared_x": False}
    return BilevelProblem(measure_loss, inner_loss, init_inner, **options)


def train_at(train, x, y=None, steps=150):
    """``y*(x)``."""
    return solve_inner(make_problem(train), x, y, inner=Nesterov(step_size=0.3, momentum=0.9, steps=steps))


# %% [markdown]
# Both ways start at equal weights, and go on from the last ``y``. The rule needs the training losses alone.


# %%
def follow_hypergradient(train, val, steps):
    inner = Nesterov(step_size=0.3, momentum=0.9, steps=20)
    algorithm = BiO(estimator=AID(inner=inner, solver=CG(iterations=10)), step_size=5.0)
    return run(make_problem(train, val), algorithm, torch.zeros(len(train[0])).double(), steps=steps).x


def follow_rule(train, steps, rate=0.1, least=0.1):
    weights, y = torch.full((len(train[0]), 2), 0.5).double(), None
    for _ in range(steps):
        y = train_at(train, torch.logit(weights[:, 1]), y, steps=20)
        losses = torch.func.vmap(measure_halves)(y, train)
        mean = losses.mean(1, keepdim=True)
        weights = (weights - rate * (mean - losses) / mean).clamp(min=least)
        weights = weights / weights.sum(1, keepdim=True)
    return torch.logit(weights[:, 1])


def judge(y, batch):
    """The loss and the accuracy of every seed on its examples: ``[seeds]`` each."""
    hits = torch.func.vmap(add_up)(y, batch).argmax(-1) == batch[3]
    return torch.func.vmap(measure_loss, (None, 0, 0))(None, y, batch), hits.double().mean(1)


def draw(curves, ends, gains):
    plt.style.use("metalearn.reports.plain")
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), width_ratios=[3, 3, 4])
    for axis, (way, losses) in zip(axes[:2], curves.items(), strict=True):
        least = losses.min(0).values
        means, _, halves, _ = torch.tensor([spread(excess.tolist()) for excess in losses - least]).T
        axis.plot(SHARES, means, color="black", label="grid")
        axis.fill_between(SHARES, means - halves, means + halves, color="black", alpha=0.15, linewidth=0)
        for (name, (x, loss)), marker in zip(ends[way].items(), "sD*", strict=True):
            share, excess = spread(x.sigmoid().tolist()), spread((loss - least).tolist())
            place = share.mean, excess.mean, excess.ci95, share.ci95
            axis.errorbar(*place, fmt=marker, markersize=9, capsize=3, label=name)
        axis.set(xlabel="share of the lower half's loss", ylabel="f above its least value on the grid", title=way)
    axes[0].legend(loc="upper left")
    for place, values in enumerate(gains.values()):
        for number, (gain, marker) in enumerate(zip(values.values(), "D*", strict=True), start=1):
            mean, _, half, _ = spread((100 * gain).tolist())
            axes[2].errorbar(
                mean, place + 0.2 * number - 0.3, xerr=half, fmt=marker, markersize=9, capsize=3, color=f"C{number}"
            )
    axes[2].axvline(0, color="C0")
    axes[2].set(yticks=[0, 1], yticklabels=[name.replace(" ", "\n", 1) for name in gains], ylim=(-0.5, 1.5))
    axes[2].set(xlabel="test accuracy over equal weights (points)", title=f"{SEEDS} seeds, 95 % intervals")
    figure.savefig("missing_modalities.png")


# %%
if __name__ == "__main__":
    trains, evaluated = zip(*map(draw_data, range(SEEDS)), strict=True)
    train, even = stack(trains), torch.zeros(SEEDS).double()
    by_rule = follow_rule(train, OUTER_STEPS)
    on_grid = [train_at(train, torch.full_like(even, share).logit()) for share in SHARES]
    curves, ends, gains = {}, {}, {}
    for way in (AS_TRAINED, BALANCED):
        val, test = (stack([parts[way][i] for parts in evaluated]) for i in (0, 1))
        by_hypergradient = follow_hypergradient(train, val, OUTER_STEPS)
        learned = {"equal weights": even, "relative advantage": by_rule, "hypergradient": by_hypergradient}
        models = {name: train_at(train, x) for name, x in learned.items()}
        curves[way] = torch.stack([judge(y, val)[0] for y in on_grid])
        ends[way] = {name: (x, judge(models[name], val)[0]) for name, x in learned.items()}
        scores = {name: judge(y, test)[1] for name, y in models.items()}
        gains[way] = {name: scores[name] - scores["equal weights"] for name in learned if name != "equal weights"}
        print(f"{way}: least mean loss on the grid {curves[way].mean(1).min():.4f}")
        for name, (x, loss) in ends[way].items():
            share, score = spread(x.sigmoid().tolist()), spread((100 * scores[name]).tolist())
            print(f"  {name}: share {share.mean:.3f} ± {share.ci95:.3f}, f {loss.mean():.4f}, ", end="")
            print(f"test accuracy {score.mean:.2f} % ± {score.ci95:.2f}")
    for name, examples in (("training", train), ("validation", val)):
        upper, lower = torch.func.vmap(measure_halves)(models["equal weights"], examples).mean(0)
        print(f"{name} losses of the halves, with equal weights: upper {upper:.3f}, lower {lower:.3f}")
    draw(curves, ends, gains)
