"""The scripts behind the published accuracies, at toy size and against loops written here."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import ensemble
import lake_folders
import lightning as L
import lost_classes
import more_steps
import permutations
import pytest
import recipes
import shipped
import torch
import verify_checkpoints

from metalearn import MAML, Conv4
from metalearn.cli import main as metalearn
from metalearn.datamodules import GlyphsDataModule
from metalearn.episode import Batch
from metalearn.image_classifier import load_module
from tests.made import make_omniglot

NAME = "maml_glyphs_5w1s"
Say = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """Runs a script with these arguments, and gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(script: Callable[[], None], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        script()
        return capsys.readouterr().out

    return run


def test_permutations_are_those_of_a_loop_over_them(say: Say) -> None:
    output = Path("spread.json")
    printed = say(
        permutations.main, NAME, "--config", "maml_glyphs_5w1s", "--tasks", 1, "--permutations", 0, "--output", output
    )
    numbers = json.loads(output.read_text())
    module, _ = load_module(NAME)
    data = GlyphsDataModule(ways=5, shots=1, queries=5)
    tasks = []
    for index in range(1):
        support, query = data.episode(data.seed, "test", index)
        right = []
        for order in map(torch.tensor, itertools.permutations(range(5))):
            adapted = module.adapt(Batch(support.x, order[support.y]))
            right.append(float((adapted(query.x).argmax(-1) == order[query.y]).float().mean()))
        tasks.append(torch.tensor(right))
    found = torch.stack(tasks)
    assert numbers["permutations"] == 120
    assert numbers["sha256"] == hashlib.sha256((verify_checkpoints.FOLDER / f"{NAME}.ckpt").read_bytes()).hexdigest()
    assert numbers["accuracy"] == pytest.approx(float(found.mean()), abs=1e-6)
    assert numbers["deviation"] == pytest.approx(float(found.std(1).mean()), abs=1e-6)
    assert numbers["best"] == pytest.approx(float(found.max(1).values.mean()), abs=1e-6)
    assert numbers["worst"] == pytest.approx(float(found.min(1).values.mean()), abs=1e-6)
    assert f"worst {100 * numbers['worst']:.2f} %" in printed


def test_permutations_go_on_from_the_tasks_that_are_done(say: Say) -> None:
    output, part = Path("spread.json"), Path("spread.json.part")
    options = (NAME, "--config", NAME, "--permutations", 4, "--output", output)
    say(permutations.main, *options, "--tasks", 2)
    assert not part.exists()
    whole = json.loads(output.read_text())
    say(permutations.main, *options, "--tasks", 1)
    first = json.loads(output.read_text())
    settings = {"sha256": whole["sha256"], "permutations": 4, "inner_steps": None, "config": NAME, "root": None}
    part.write_text(json.dumps({**settings, "rows": [[1.0, 0.0, 0.0, 0.0]]}))
    assert "goes on after task 1" in say(permutations.main, *options, "--tasks", 2)
    assert json.loads(output.read_text())["accuracy"] == pytest.approx(
        whole["accuracy"] - (first["accuracy"] - 0.25) / 2
    )
    part.write_text(json.dumps({**settings, "sha256": "another", "rows": []}))
    with pytest.raises(SystemExit, match="was begun with .*another.*; delete it, or name another --output"):
        say(permutations.main, *options, "--tasks", 2)
    assert part.exists()


def test_many_ways_have_too_many_orders_to_list() -> None:
    orders = permutations.draw_orders(20, 4)
    assert orders.shape == (4, 20)
    assert torch.equal(orders.sort(-1).values, torch.arange(20).expand(4, 20))
    assert len(set(map(tuple, orders.tolist()))) == 4
    with pytest.raises(
        SystemExit, match="--permutations is 0, for all, but 20 labels have 2,432,902,008,176,640,000 orders"
    ):
        permutations.draw_orders(20, 0)
    with pytest.raises(SystemExit, match="--permutations is -1, but must be a number of orders, or 0 for all"):
        permutations.draw_orders(5, -1)


def test_an_ensemble_is_the_mean_of_probabilities(say: Say) -> None:
    other = "anil_omniglot_5w1s"
    say(ensemble.main, NAME, other, "--config", NAME, "--tasks", 2, "--output", "ensemble.json")
    numbers = json.loads(Path("ensemble.json").read_text())
    data = GlyphsDataModule(ways=5, shots=1, queries=5)
    right, alone = [], []
    for index in range(2):
        support, query = data.episode(data.seed, "test", index)
        first, second = (load_module(name)[0].adapt(support)(query.x).softmax(-1) for name in (NAME, other))
        right.append(float(((first + second).argmax(-1) == query.y).float().mean()))
        alone.append(float((second.argmax(-1) == query.y).float().mean()))
    assert numbers["ensemble"][0] == pytest.approx(sum(right) / 2, abs=1e-6)
    assert numbers["alone"][1][0] == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_the_data_of_a_config_have_its_options(omniglot: Path) -> None:
    data = shipped.make_data(shipped.read_config("maml_lake_20w1s"), str(omniglot), ways=2)
    assert data.options.within_groups
    (transform,) = data.options.augment
    assert (type(transform).__name__, list(transform.degrees)) == ("RandomAffine", [-13, 13])


def test_a_class_is_lost_where_all_its_queries_go_to_one_other() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert lost_classes.find_lost(labels, torch.tensor([0, 1, 1, 1, 3, 3, 2, 0])) == [(2, 3)]


def test_the_errors_of_lost_classes_are_counted(say: Say) -> None:
    torch.manual_seed(0)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    lossy = MAML(Conv4(hidden=2, ways=5), inner_steps=1, inner_lr=30.0)  # so long a step loses classes
    lossy.image_spec = load_module(NAME)[1].to_dict()
    trainer.strategy.connect(lossy)
    trainer.save_checkpoint("lossy.ckpt")
    words = ["lossy.ckpt", "--config", NAME, "--tasks", 8, "--picture", "p.png", "--output", "t.json"]
    printed = say(lost_classes.main, *words)
    numbers = json.loads(Path("t.json").read_text())
    module, _ = load_module("lossy.ckpt")
    data = GlyphsDataModule(ways=5, shots=1, queries=5, test_tasks=8)
    wrong = lost = 0
    for index in range(8):
        support, query = data.episode(data.seed, "test", index)
        table = torch.zeros(5, 5)
        for true, taken in zip(query.y, module.adapt(support)(query.x).argmax(-1), strict=True):
            table[true, taken] += 1
        wrong += int(table.sum() - table.trace())
        lost += sum(int(table[true].max()) == 5 and int(table[true].argmax()) != true for true in range(5))
    assert (numbers["errors"], numbers["lost"], numbers["lost_errors"]) == (wrong, lost, 5 * lost)
    assert lost
    assert f"{wrong:,} errors, {5 * lost:,} of them in {lost} classes" in printed
    assert Path("p.png").stat().st_size > 1000


def test_recipes_are_judged_once_each(say: Say, tmp_path: Path) -> None:
    root = make_omniglot(tmp_path / "omniglot", alphabets=10, characters=8, drawings=4)
    common = ["--root", root, "--ways", 2, "--seconds", 0.1, "--tasks", 3, "--output", "rows"]
    recipe = "tasks=2+queries=1+hidden=4+compile=False+affine=1.0"
    assert f"{recipe}: " in say(recipes.main, *common, "--row", recipe)
    (file,) = Path("rows").iterdir()
    row = json.loads(file.read_text())
    assert (row["recipe"], row["ways"], row["shots"], row["tasks"]) == (recipe, 2, 1, 3)
    assert row["steps"] >= 1
    assert 0 <= row["accuracy"] <= 1
    assert say(recipes.main, *common, recipe) == ""  # it has its file, so no process begins
    assert f"| {recipe} | {100 * row['accuracy']:.2f} % | {row['steps']} |" in say(
        recipes.main, "--output", "rows", "--table"
    )


def test_a_recipe_changes_the_base() -> None:
    assert recipes.read_recipe("base") == recipes.BASE
    changed = recipes.read_recipe("inner_steps=5+inner_lr=learn_per_step+average=0.9")
    different = {key: value for key, value in changed.items() if value != recipes.BASE[key]}
    assert different == {"inner_steps": 5, "inner_lr": "learn_per_step", "average": 0.9}


@pytest.mark.parametrize(("kind", "more"), [("ProtoNet", {}), ("ANIL", {"head_solver": "ridge"})])
def test_a_head_in_closed_form_takes_no_steps(kind: str, more: dict[str, str]) -> None:
    changes = "+".join(f"{key}={value}" for key, value in more.items()) or "base"
    assert recipes.choose_arguments(kind, recipes.read_recipe(changes)) == {"norm": "transductive", **more}
    with pytest.raises(SystemExit, match="inner_steps is 3, but a head in closed form takes no steps; leave it out"):
        recipes.choose_arguments(kind, recipes.read_recipe(changes) | {"inner_steps": 3})


@pytest.mark.long
def test_the_glyphs_checkpoint_gives_its_accuracy_to_the_last_digit(say: Say) -> None:
    row = json.loads((verify_checkpoints.FOLDER / "manifest.json").read_text())[f"{NAME}.ckpt"]
    assert verify_checkpoints.test(f"{NAME}.ckpt", None, Path.cwd()) == (row["test_accuracy"], row["ci95"])


@pytest.mark.parametrize(("change", "says", "code"), [
    ({}, ": right\n", 0), ({"test_accuracy": 12.0}, ": WRONG\n", 1), ({"sha256": "0"}, ", of another file: WRONG\n", 1),
])  # fmt: skip
def test_a_checkpoint_is_held_against_its_row(
    say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: dict[str, object], says: str, code: int,
) -> None:  # fmt: skip
    content = (verify_checkpoints.FOLDER / f"{NAME}.ckpt").read_bytes()
    row = json.loads((verify_checkpoints.FOLDER / "manifest.json").read_text())[f"{NAME}.ckpt"]
    (tmp_path / f"{NAME}.ckpt").write_bytes(content)
    (tmp_path / "manifest.json").write_text(json.dumps({f"{NAME}.ckpt": {**row, **change}}))
    monkeypatch.setattr(verify_checkpoints, "FOLDER", tmp_path)
    monkeypatch.setattr(verify_checkpoints, "test", lambda *_: (row["test_accuracy"], row["ci95"]))
    with pytest.raises(SystemExit) as stop:
        say(verify_checkpoints.main)
    assert stop.value.code == code
    assert capsys.readouterr().out.endswith(says)


def test_more_steps_are_those_of_adapt(say: Say) -> None:
    printed = say(more_steps.main, NAME, "--ways", 3, "--steps", 1, 2, "--factors", 1, 0.5, "--tasks", 2)
    rows = [line for line in printed.splitlines() if line.startswith("| 3 ")]
    assert [row.split("|")[2].strip() for row in rows] == ["learned", "0.5 of the learned", "learned, head alone"]
    module, _ = load_module(NAME)
    module.rescale_steps(0.5)
    data = GlyphsDataModule(ways=3, shots=1, queries=5)
    right = []
    for index in range(2):
        support, query = data.episode(data.seed, "val", index)
        right.append(float((module.adapt(support, steps=2, ways=3)(query.x).argmax(-1) == query.y).float().mean()))
    assert rows[1].split("|")[4].strip().startswith(f"{50 * sum(right):.1f} ±")


def test_lakes_challenge_from_folders_is_that_of_the_data(say: Say, omniglot: Path) -> None:
    metalearn(
        ["fit", "--config", "maml_lake_20w1s", "--data.root", str(omniglot), "--trainer.max_steps", "1",
         "--data.tasks_per_batch", "1", "--data.train_tasks", "1", "--data.val_tasks", "1", "--data.test_tasks", "2"]
    )  # fmt: skip
    folder = Path("runs/maml_lake_20w1s/version_0")
    printed = say(
        lake_folders.main, "--ckpt_path", folder / "checkpoints" / "best.ckpt", "--root", omniglot, "--tasks", 2
    )
    test = json.loads((folder / "run.json").read_text())["summary"]["test"]
    assert f"together: error {100 - 100 * test['accuracy']['mean']:.2f} % over 2 tasks" in printed
    assert f"each alone: error {100 - 100 * test['accuracy_independent']['mean']:.2f} % over 2 tasks" in printed
