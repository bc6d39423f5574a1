"""Image completion without learning: the root mean squared error of mean colours and of nearest pixels on the same test tasks.

    python benchmarks/completion.py --config maml_completion_miniimagenet --root DIR

scikit-learn's KNeighborsRegressor tells each colour by the known pixels nearest to it. `metalearn test` prints that of a model.
"""

from __future__ import annotations

import argparse

import numpy as np
import yaml
from sklearn.neighbors import KNeighborsRegressor

from metalearn.cli.shipped import shipped_configs
from metalearn.datamodules import ImageCompletionEpisodes, MiniImageNetDataModule
from metalearn.intervals import measure_interval

NEIGHBOURS = (1, 3, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="maml_completion_miniimagenet")
    parser.add_argument("--root", required=True, help="the images, in a form that MiniImageNetDataModule reads")
    parser.add_argument("--tasks", type=int, default=600)
    asked = parser.parse_args()
    arguments = yaml.safe_load(shipped_configs()[asked.config].read_text())["data"]["init_args"]
    images = MiniImageNetDataModule(asked.root, **arguments.pop("images")["init_args"])
    data = ImageCompletionEpisodes(images, **arguments)
    errors: dict[str, list[float]] = {}
    for index in range(asked.tasks):
        support, query = (tuple(part.numpy() for part in role) for role in data.episode(data.seed, "test", index))
        guesses = {"mean colour of the known pixels": support[1].mean(0)}
        for count in NEIGHBOURS:
            model = KNeighborsRegressor(min(count, len(support[0])), weights="distance").fit(*support)
            guesses[f"{count} nearest, by distance" if count > 1 else "nearest"] = model.predict(query[0])
        for name, guess in guesses.items():
            errors.setdefault(name, []).append(float(np.square(guess - query[1]).mean() ** 0.5))
    for name, values in errors.items():
        interval = measure_interval(values)
        print(f"{name:32} RMSE {interval.mean:.4f} ± {interval.ci95:.4f}, {len(values)} tasks")


if __name__ == "__main__":
    main()
