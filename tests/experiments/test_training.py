"""What is read of a training's log, how its command goes on, and which folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalearn.errors import ConfigError, DataError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Processes
from metalearn.experiments.plan import claim
from metalearn.experiments.seed_pictures import draw_seeds
from metalearn.experiments.seeds import SeedRuns, choose_measure
from metalearn.experiments.training import Training, format_measure
from tests.experiments.scripted import make_scripted

LOG = """epoch,step,test/acc,test/acc_ci95,train/loss,val/acc
0,4,,,1.5,
0,9,,,,0.4
1,19,,,,0.6
2,20,0.55,0.02,,
2,2"""


def made(folder: Path, log: str = LOG) -> Training:
    (folder / "seed_0" / "version_0").mkdir(parents=True)
    (folder / "seed_0" / "version_0" / "metrics.csv").write_text(log)
    return Training("seed 0", folder / "seed_0", ["--config", "mine"], "val/acc", 40)


def test_what_a_log_says(tmp_path: Path) -> None:
    """Its last row is written just now, and is left out."""
    training = made(tmp_path)
    assert training.validations() == {10: 0.4, 20: 0.6}
    assert training.tests() == {"test/acc": 0.55, "test/acc_ci95": 0.02}
    assert training.look() == (20, 40, "step 20/40, val/acc 0.6")
    path = tmp_path / "seed_0" / "version_0" / "metrics.csv"
    path.write_text(LOG + "1,,,1.2,\n")
    assert training.count_steps() == 22


@pytest.mark.parametrize("log", ["", "step", "step,val/acc\n", "\x00\xff,\n,,\n", "step,val/acc\nx,y\n", "a,b\n1,2\n"])
def test_a_log_without_rows(log: str, tmp_path: Path) -> None:
    assert made(tmp_path, log).look() == (0, 40, "starting")


def test_the_newest_run_counts_and_goes_on(tmp_path: Path) -> None:
    training = made(tmp_path)
    assert "--ckpt_path=last" not in training.job().command
    for name in ("version_10/checkpoints", "version_9/checkpoints", "version_x"):
        (tmp_path / "seed_0" / name).mkdir(parents=True)
    (tmp_path / "seed_0" / "version_10" / "checkpoints" / "last.ckpt").touch()
    assert training.run == tmp_path / "seed_0" / "version_10"
    assert training.checkpoint == tmp_path / "seed_0" / "version_10" / "checkpoints" / "last.ckpt"
    assert list(training.job().command[2:]) == [
        "metalearn", "fit", "--config", "mine", f"--trainer.default_root_dir={tmp_path}", "--run_name=seed_0", "--ckpt_path=last"
    ]  # fmt: skip


def test_a_folder_belongs_to_one_experiment(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    options = {"model": {"class_path": "MAML", "init_args": {"inner_lr": 0.1}}, "seeds": [1, 2]}
    with claim(folder, "seeds", options), pytest.raises(ConfigError, match="in use by another metalearn seeds; wait"):
        claim(folder, "seeds", options).__enter__()
    with claim(folder, "seeds", options):
        pass
    with pytest.raises(ConfigError, match="is a folder of metalearn seeds, not of sweep"):
        claim(folder, "sweep", options).__enter__()
    options["model"]["init_args"]["inner_lr"] = 0.4  # type: ignore[index]
    with pytest.raises(
        ConfigError, match=r"begun with model.inner_lr 0.1, but now it is model.inner_lr 0.4; say the same"
    ):
        claim(folder, "seeds", options).__enter__()
    (folder / "plan.json").write_text(json.dumps({"kind": "seeds"})[:-3])
    with pytest.raises(ConfigError, match="exists, but it is no folder of metalearn seeds"):
        claim(folder, "seeds", options).__enter__()
    with pytest.raises(DataError, match="cannot be written"):
        claim(folder / "plan.json" / "below", "seeds", options).__enter__()


def test_seeds_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    runs = SeedRuns(tmp_path, {seed: make_scripted(tmp_path / f"seed_{seed}", seed + 1.0) for seed in (3, 5, 7)})
    for _ in range(2):
        assert runs.run(Processes(1, Board("seeds", 3))) == 0
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("*/starts")} == {
        f"seed_{seed}": "." for seed in (3, 5, 7)
    }
    mean, std, ci95, number = runs.measures()["test/loss"]
    assert (mean, std, number) == (6.0, 2.0, 3)
    assert ci95 == pytest.approx(4.302652729911275 * 2 / 3**0.5)
    assert runs.within("test/loss") == 0.25
    assert draw_seeds(tmp_path / "seeds.png", runs, "test/loss", "mine").stat().st_size > 0
    first, *rows = runs.write().read_text().splitlines()
    assert first == "seed,steps,seconds,test/loss,test/loss_ci95,run"
    assert [row.split(",")[0] for row in rows] == ["3", "5", "7"]


def test_measures() -> None:
    assert choose_measure(["test/loss", "test/acc"], "val/acc") == "test/acc"
    assert choose_measure(["test/loss", "test/acc"], "val/loss") == "test/loss"
    assert choose_measure(["test/mine"], "val/acc") == "test/mine"
    assert choose_measure([], "val/acc") is None
    assert format_measure("test/acc", 0.9154, 0.0068) == "91.54 % ± 0.68"
    assert format_measure("test/loss", 0.1234567) == "0.1235"
