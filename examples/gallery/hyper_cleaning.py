# %% [markdown]
"""
Hyper-cleaning: find the wrong labels
=====================================

A third of the training labels is wrong. Learned weights find out which, with the help of a few clean points.

The inner problem fits a linear classifier to weighted training points. The outer problem chooses the weights, such that the
classifier does well on clean validation points. A weight of a wrong label hurts there, so it falls.
"""

# %%
import matplotlib.pyplot as plt
import torch

from metalearn.bilevel import AID, CG, BiO, GradientDescent, cleaning_problem, detection_auroc, linear_logits, run

OUTER_STEPS = 60  # the tests run 2

# %% [markdown]
# Three classes of points in the plane. A third of the training labels is replaced by another class.

# %%
generator = torch.Generator().manual_seed(0)
centres = torch.tensor([[-2.0, -1.0], [2.0, -1.0], [0.0, 2.0]])


def draw_points(count):
    labels = torch.randint(3, (count,), generator=generator)
    points = centres[labels] + torch.randn(count, 2, generator=generator)
    return points, labels


(x_train, true_labels), (x_clean, y_clean), (x_test, y_test) = draw_points(300), draw_points(60), draw_points(2000)
wrong = torch.rand(300, generator=generator) < 1 / 3
y_train = torch.where(wrong, (true_labels + torch.randint(1, 3, (300,), generator=generator)) % 3, true_labels)

# %% [markdown]
# ``x`` holds one number a training point, and ``sigmoid(x)`` is its weight. ``BiO`` with ``AID`` is the algorithm AID-BiO.

# %%
problem = cleaning_problem(
    train=(torch.arange(300), x_train, y_train), val=(torch.arange(60), x_clean, y_clean), classes=3, l2=0.01
)
estimator = AID(inner=GradientDescent(step_size=0.5, steps=20), solver=CG(iterations=5))
result = run(problem, BiO(estimator=estimator, step_size=300.0), torch.zeros(300), steps=OUTER_STEPS)
weights = result.x.sigmoid()


# %% [markdown]
# The classifier before and after, on test points, and how well small weights point to wrong labels (1 is without a mistake).


# %%
def test_accuracy(x):
    y = problem.init_inner(x)
    for _ in range(300):  # solve the inner problem
        y = y.detach().requires_grad_()
        loss = problem.inner_loss(x, y, (torch.arange(300), x_train, y_train))
        y = y - 0.5 * torch.autograd.grad(loss, y)[0]
    return float((linear_logits(y, x_test).argmax(1) == y_test).float().mean())


print(f"test accuracy with equal weights:   {100 * test_accuracy(torch.zeros(300)):.1f} %")
print(f"test accuracy with learned weights: {100 * test_accuracy(result.x):.1f} %")
print(f"wrong labels found, AUROC:          {detection_auroc(result.x, wrong):.3f}")

# %%
plt.style.use("metalearn.reports.plain")
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
for label in range(3):
    chosen = y_train == label
    left.scatter(*x_train[chosen].T, s=4 + 60 * weights[chosen], alpha=0.6, label=f"label {label}")
left.set(title="Training points, size by learned weight", xlabel="first feature", ylabel="second feature")
left.legend(markerscale=0.8)
right.hist([weights[~wrong], weights[wrong]], bins=12, label=["right label", "wrong label"], stacked=True)
right.set(title="Learned weights", xlabel="weight", ylabel="training points")
right.legend()
figure.savefig("hyper_cleaning.png")
