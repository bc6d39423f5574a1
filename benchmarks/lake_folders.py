"""Lake's challenge by ``metalearn predict``, from a folder of drawings for each task.

Once the queries of a task are judged together, as in training, and once each by itself, as what ``--save_adapted`` keeps does.

python benchmarks/lake_folders.py --ckpt_path maml_lake_20w1s --root DIR --tasks 20
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path

from metalearn.cli import main as metalearn


def write_tasks(root: str, count: int, folder: Path) -> list[Path]:
    """The folders of so many test tasks, each with ``support/CLASS/IMAGE`` and ``queries/CLASS/IMAGE``.

    The name of a class begins with its number in the task: ``predict`` takes folders in order of their names, and another order
    of the classes is another start for a head with rows of its own.
    """
    table = folder / "tasks.csv"
    with contextlib.redirect_stdout(io.StringIO()):
        metalearn(
            ["data", "tasks", "--config", "maml_lake_20w1s", "--data.root", root, "--count", str(count),
             "--output", str(table)]
        )  # fmt: skip
    with zipfile.ZipFile(Path(root) / "images_evaluation.zip") as archive, table.open() as rows:
        for row in csv.DictReader(rows):
            name = row["class"].partition("@")[0]
            drawn = f"{int(row['label']):02d}_{name.replace('/', '_')}"
            place = folder / row["task"] / ("support" if row["role"] == "support" else "queries") / drawn
            place.mkdir(parents=True, exist_ok=True)
            (place / row["image"]).write_bytes(archive.read(f"images_evaluation/{name}/{row['image']}"))
    return [folder / str(task) for task in range(count)]


def classify(checkpoint: str, task: Path, output: Path, more: list[str]) -> float:
    """The share of a task's queries that ``predict`` takes for another character."""
    with contextlib.redirect_stdout(io.StringIO()):
        metalearn(
            ["predict", "--ckpt_path", checkpoint, "--support", str(task / "support"),
             "--query", str(task / "queries"), "--output", str(output), *more]
        )  # fmt: skip
    with (output / "predictions.csv").open() as rows:
        answers = [line["predicted"] != Path(line["image"]).parent.name for line in csv.DictReader(rows)]
    return sum(answers) / len(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--root", required=True, help="where the two zip files of Omniglot are")
    parser.add_argument("--tasks", type=int, default=20)
    options = parser.parse_args()
    wrong: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as made:
        for task in write_tasks(options.root, options.tasks, Path(made)):
            for name, more in {
                "together": [],
                "each alone": ["--save_adapted", str(task / "adapted.safetensors")],
            }.items():
                wrong[name].append(classify(options.ckpt_path, task, task / name, more))
    for name, errors in wrong.items():
        print(f"{name}: error {100 * sum(errors) / len(errors):.2f} % over {len(errors)} tasks")


if __name__ == "__main__":
    main()
