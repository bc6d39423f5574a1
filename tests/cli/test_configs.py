"""Every shipped configuration runs fit, then test, on tiny made data; its checkpoint adapts, predicts, and its model ships."""

from __future__ import annotations

import csv
import math
import re
import statistics
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import metalearn
from metalearn import AdaptedModel, Batch, Episode, MetaModule
from metalearn.cli import main
from metalearn.cli.shipped import shipped_configs
from metalearn.datamodules.topics import TOPICS
from tests.made_bilevel import make_mnist, make_newsgroups, make_topics

TINY = [
    "--trainer.max_steps",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "1",
    "--data.tasks_per_batch",
    "2",
    "--data.train_tasks",
    "4",
    "--data.val_tasks",
    "2",
    "--data.test_tasks",
    "3",
]
SIDE = 16
"""Pixels of an image: the least that four halvings leave something of."""
MINI = ["--data.queries", "2", "--data.image_size", str(SIDE), "--model.backbone.image_size", str(SIDE)]
SMALL = ["--model.backbone.hidden", "4"]
ON_ONE_PROBLEM = {
    "hyper_cleaning_mnist": ["--data.train", "60", "--data.val", "30", "--data.test", "30", "--model.outer_lr", "10"],
    "regularization_newsgroups": ["--model.inner_lr", "1", "--model.outer_lr", "5", "--data.vocabulary", "50"],
}
"""Configurations without episodes, and what makes them small."""


def has_twin(name: str) -> bool:
    """Whether another configuration differs from it in ways and shots alone."""
    twin = re.sub(r"\d+w\d+s", "5w1s", name)
    return twin != name and twin in shipped_configs()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if has_twin(name) else name
        for name in shipped_configs()
        if name not in ON_ONE_PROBLEM
    ],
)
def test_config_fits_and_tests(name: str, omniglot: Path, miniimagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data = ["--data.queries", "2"] if "glyphs" in name else []
    for kind, folder in (("omniglot", omniglot), ("lake", omniglot), ("miniimagenet", miniimagenet)):
        data += ["--data.root", str(folder), *MINI] if kind in name else []
    small = [] if "sinusoid" in name else SMALL
    if "completion" in name:
        data = ["--data.images.root", str(miniimagenet), "--data.images.image_size", "12", "--data.shots", "20"]
        data, small = [*data, "--data.train_queries", "30"], []
    if "newsgroups" in name:
        topics = [topic for topics in TOPICS.values() for topic in topics]
        data = ["--data.root", str(make_topics(tmp_path / "data", topics, each=7)), "--data.queries", "2"]
        small = ["--data.length", "5", "--data.vocabulary", "50", "--model.backbone.vocabulary", "50"]
    main(["fit", "--config", name, *data, *small, *TINY])
    run = tmp_path / "runs" / name / "version_0"
    printed = capsys.readouterr().out
    assert "3 tasks)" in printed
    pictured = [] if "newsgroups" in name else ["episode.png"]  # a text is no picture
    for written in ("metrics.csv", "test_tasks.csv", "config.yaml", "inner_steps.png", "training.png", *pictured):
        assert (run / written).stat().st_size > 0, written
    assert (run / "costs.png").is_file() == ("oracle calls" in printed) == name.startswith(("imaml", "bilevel"))
    first = (run / "test_tasks.csv").read_text()
    (run / "test_tasks.csv").unlink()
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--trainer.accelerator", "cpu"])
    printed = capsys.readouterr().out
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    with (run / "test_tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    regression = "sinusoid" in name or "completion" in name
    column = next(key for key in reversed(rows[0]) if key.startswith("loss_step" if regression else "acc_step"))
    values = [float(row[column]) for row in rows]
    ci = 1.96 * statistics.stdev(values) / math.sqrt(3)
    if regression:
        assert f"{statistics.fmean(values):.4f} ± {ci:.4f}" in printed
    else:
        assert f"{100 * statistics.fmean(values):.2f} % ± {100 * ci:.2f}" in printed
    assert first == (run / "test_tasks.csv").read_text()  # the same tasks, the same answers
    check_that_it_ships(run / "checkpoints" / "best.ckpt", make_support(name), tmp_path)


def make_support(name: str) -> Batch:
    """The support set of a task like those of a configuration, as the test above makes them small."""
    if "sinusoid" in name or "completion" in name:
        inputs, outputs = (1, 1) if "sinusoid" in name else (2, 3)
        return Batch(torch.rand(10, inputs), torch.rand(10, outputs))
    labels = torch.arange(20 if "20w" in name else 5).repeat(2)
    if "newsgroups" in name:
        return Batch(torch.randint(2, 50, (len(labels), 5)), labels)
    shape = (1, 28, 28) if "glyphs" in name else (3 if "miniimagenet" in name else 1, SIDE, SIDE)
    return Batch(torch.randn(len(labels), *shape), labels)


def check_that_it_ships(checkpoint: Path, support: Batch, folder: Path) -> None:
    """A checkpoint alone predicts tasks under a trainer, and adapts; what adapted is saved, and loaded again."""
    module = metalearn.load(checkpoint)
    assert isinstance(module, MetaModule)
    tasks = Batch(support.x[None], support.y[None])
    run = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (predicted,) = run.predict(module, dataloaders=DataLoader([Episode(tasks, tasks)], batch_size=None)) or []  # type: ignore[arg-type]
    assert predicted is not None
    adapted = module.adapt(support)
    file = adapted.save(folder / "adapted.safetensors")
    again = AdaptedModel.load(file, module)
    torch.testing.assert_close(again(support.x), adapted.independent()(support.x))


@pytest.mark.parametrize("name", ON_ONE_PROBLEM)
def test_config_of_one_problem_fits_and_tests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    root = (make_mnist if "mnist" in name else make_newsgroups)(tmp_path / "data")
    main(["fit", "--config", name, "--data.root", str(root), "--data.steps_per_epoch", "2", "--trainer.max_steps", "4",
          *TINY[2:8], *ON_ONE_PROBLEM[name]])  # fmt: skip
    run = tmp_path / "runs" / name / "version_0"
    printed = capsys.readouterr().out
    learned = "weights.png" if "mnist" in name else "penalties.png"
    for file in ("metrics.csv", "config.yaml", "costs.png", learned):
        assert (run / file).stat().st_size > 0, file
    assert ("AUROC" in printed) == ("mnist" in name)
    (accuracy,) = [line for line in printed.splitlines() if "test accuracy" in line]
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--trainer.accelerator", "cpu"])
    (again,) = [line for line in capsys.readouterr().out.splitlines() if "test accuracy" in line]
    assert again.split()[1:5] == accuracy.split()[1:5]


@pytest.mark.parametrize("name", shipped_configs())
def test_config_opens_with_its_command(name: str) -> None:
    path = shipped_configs()[name]
    first, second, *_ = path.read_text().splitlines()
    expected = (
        "# python -m metalearn fit" if name == "maml_glyphs_5w1s" else f"# python -m metalearn fit --config {name}"
    )
    assert first.startswith(expected)
    assert second == "#"
    assert "Departs from it" in path.read_text()
    assert yaml.safe_load(path.read_text())["seed_everything"] == 0
