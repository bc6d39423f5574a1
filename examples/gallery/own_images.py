# %% [markdown]
"""
Adapt to your own images
========================

Three labelled drawings of each of four symbols are enough for a model that has only ever seen letters.

Your images lie in a folder for each class. Here a few symbols are drawn for that. The model is the checkpoint that is
installed with the package, trained on five classes of Latin and Greek letters.
"""

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

from metalearn.image_classifier import adapt_to_folder

QUERIES = 6  # the tests run 2
SHAPES = {
    "arrow": [[(8, 32), (56, 32)], [(40, 16), (56, 32), (40, 48)]],
    "house": [[(12, 56), (12, 30), (32, 10), (52, 30), (52, 56), (12, 56)]],
    "lightning": [[(40, 6), (20, 34), (42, 32), (24, 58)]],
    "tent": [[(8, 52), (32, 12), (56, 52), (8, 52)], [(32, 12), (32, 52)]],
}

# %% [markdown]
# Every drawing is turned, scaled and shaken a little, as drawings by hand are.


# %%
def draw(name: str, generator: np.random.Generator) -> Image.Image:
    image = Image.new("L", (64, 64), 255)
    angle, scale = generator.normal(0, 0.15), generator.uniform(0.75, 1.0)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for stroke in SHAPES[name]:
        points = (np.array(stroke) - 32) @ turn.T + 32 + generator.normal(0, 1.5, (len(stroke), 2))
        ImageDraw.Draw(image).line([tuple(point) for point in points], fill=0, width=int(generator.integers(3, 6)))
    return image


generator = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    support, queries = Path(folder) / "support", Path(folder) / "queries"
    for name in SHAPES:
        (support / name).mkdir(parents=True)
        (queries / name).mkdir(parents=True)
        for number in range(3):
            draw(name, generator).save(support / name / f"{number}.png")
        for number in range(QUERIES):
            draw(name, generator).save(queries / name / f"{number}.png")

    classifier = adapt_to_folder("maml_glyphs_5w1s", support)
    answers = classifier.classify_folder(queries)
    images = {path: np.asarray(Image.open(path)) for path in answers}
    examples = [np.asarray(Image.open(path)) for path in sorted(support.glob("*/*.png"))]

right = sum(path.parent.name == answer for path, answer in answers.items())
print(f"{right} of {len(answers)} drawings are recognised, from {classifier.support} labelled ones")

# %% [markdown]
# The command line does the same: ``metalearn predict --ckpt_path maml_glyphs_5w1s --support SUPPORT --query QUERIES``.

# %%
plt.style.use("metalearn.reports.plain")
figure, axes = plt.subplots(len(SHAPES), 3 + QUERIES, figsize=(8, 4.2))
for row, name in zip(axes, SHAPES, strict=True):
    start = 3 * list(SHAPES).index(name)
    of_class = [(images[path], answer) for path, answer in answers.items() if path.parent.name == name]
    for axis, image in zip(row, [*examples[start : start + 3], *(image for image, _ in of_class)], strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
    row[0].set_title(f"labelled: {name}", loc="left", fontsize=9)
    for axis, (_, answer) in zip(row[3:], of_class, strict=True):
        axis.set_title(answer, color="tab:green" if answer == name else "tab:red", fontsize=9)
figure.savefig("own_images.png")
