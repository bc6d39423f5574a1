"""What is shipped is described by the run that made it, and pages show what the manifest says."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import beside
import pytest
import ship
import tables
import torch
import yaml

from metalearn.cli import main

MANIFEST: dict[str, dict[str, Any]] = json.loads(ship.MANIFEST.read_text())


def fit_tiny(tmp_path: Path, *more: str) -> Path:
    """The folder of a run of two steps."""
    tiny = ["--data.train_tasks", "4", "--data.tasks_per_batch", "2", "--data.val_tasks", "2", "--data.test_tasks", "4"]
    main(["fit", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", *tiny, *more])
    return max((tmp_path / "runs" / "maml_glyphs_5w1s").iterdir())


def test_pages_show_what_the_manifest_says() -> None:
    assert (ship.FOLDER / "README.md").read_text() == ship.write_cards(MANIFEST)
    assert ship.write_table(MANIFEST) in ship.PAGE.read_text()
    for page in ship.MATRIX_PAGES:
        assert ship.write_matrix(MANIFEST) in page.read_text()
    assert beside.write_runs(MANIFEST) in ship.PAGE.read_text()
    assert beside.write_permutations(MANIFEST) in ship.PAGE.read_text()
    assert beside.write_ensembles(MANIFEST) in ship.PAGE.read_text()


def test_a_run_is_described_by_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fit_tiny(tmp_path)
    content, config, row = ship.describe_run(folder, "a note")
    test = json.loads((folder / "run.json").read_text())["summary"]["test"]
    assert config == row["config"] == "maml_glyphs_5w1s"
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert (row["steps"], row["tasks"], row["test_tasks"], row["parts"], row["note"]) == (2, 4, 4, 1, "a note")
    assert row["test_accuracy"] == round(100 * test["accuracy"]["mean"], 2)
    assert row["each_query_alone"] == round(100 * test["accuracy_independent"]["mean"], 2)
    assert row["changes"]["data.train_tasks"] == "4"
    assert row["checkpoint_step"] == torch.load(io.BytesIO(content), weights_only=True)["global_step"]
    card = ship.write_card("maml_glyphs_5w1s.ckpt", row)
    assert f"{row['test_accuracy']:.2f} % ± {row['ci95']:.2f} over 4 test tasks" in card
    assert "--data.train_tasks 4" in card


def test_a_query_is_judged_alone_as_it_is_by_statistics_of_the_support_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fit_tiny(tmp_path, "--model.init_args.norm", "support")
    row = ship.describe_run(folder, "")[2]
    test = json.loads((folder / "run.json").read_text())["summary"]["test"]
    assert "accuracy_independent" not in test
    assert row["each_query_alone"] == row["test_accuracy"] == round(100 * test["accuracy"]["mean"], 2)
    assert row["each_query_alone_ci95"] == row["ci95"] == round(100 * test["accuracy"]["ci95"], 2)
    assert row["changes"]["model.init_args.norm"] == "support"


def test_what_the_config_says_by_now_is_no_change() -> None:
    told = {
        "seed_everything": "0",
        "trainer.max_steps": "400",
        "trainer.enable_progress_bar": "false",
        "model.x.y": "1",
    }
    told |= {"data.ways": "5", "model.inner_lr": "learn"}
    assert ship.find_changes(told, "maml_glyphs_5w1s") == {"model.x.y": "1"}
    told = {"model.init_args.backbone.init_args": "{in_channels: 1}", "trainer.max_steps": "4e2"}
    assert ship.find_changes(told, "maml_glyphs_5w1s") == told


def test_a_shipped_file_is_weights_and_their_description() -> None:
    whole: dict[str, Any] = dict.fromkeys(ship.KEPT, 1) | {"optimizer_states": [2], "callbacks": {"dirpath": "/a/b"}}
    config = {"data": {"init_args": {"root": "/a/b", "ways": 5}}}
    whole["metalearn"] = {"config": yaml.safe_dump(config), "rng": torch.zeros(3), "run": "mine"}
    lean = torch.load(io.BytesIO(ship.make_lean(whole, "maml_omniglot_5w1s")), weights_only=True)
    assert set(lean) == set(ship.KEPT)
    config["data"]["init_args"]["root"] = "data/omniglot"
    assert lean["metalearn"] == {"config": yaml.safe_dump(config), "run": "mine"}
    assert set(whole["metalearn"]) == {"config", "rng", "run"}  # what is passed in stays


def test_a_run_that_has_not_ended_is_not_shipped(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "stopped"}))
    with pytest.raises(SystemExit, match="is stopped, so its numbers are not those of a whole run"):
        ship.describe_run(tmp_path, "")


def test_a_box_is_found_in_what_a_run_prints() -> None:
    readme = (tables.ROOT / "README.md").read_text()
    box = tables.read_box(readme, "README.md")
    assert tables.unframe(box[1]).startswith("test accuracy")
    assert tables.read_box("more\n" + "\n".join(box) + "\nmore", "a file") == box
    with pytest.raises(SystemExit, match="a file shows no summary"):
        tables.read_box("nothing", "a file")


def test_other_seeds_stand_beside_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fit_tiny(tmp_path, "--seed_everything", "7", "--data.train_seed", "7")
    shipped = ship.describe_run(folder, "")[2] | {"test_accuracy": 91.0, "changes": {}}
    manifest = {"maml_glyphs_5w1s.ckpt": shipped}
    assert beside.add_run(manifest, folder) == beside.add_run(manifest, folder) == "maml_glyphs_5w1s"
    (other,) = shipped["others"]
    assert other["changes"]["seed_everything"] == "7"
    accuracy = 100 * json.loads((folder / "run.json").read_text())["summary"]["test"]["accuracy"]["mean"]
    assert other["test_accuracy"] == pytest.approx(accuracy, abs=0.005)
    assert "`--seed_everything 7`" in beside.write_runs(manifest)
    other["changes"] = {"seed_everything": "7", "data.train_seed": "7"}
    mean, half = (91 + other["test_accuracy"]) / 2, abs(91 - other["test_accuracy"])
    assert f"| **2 seeds** | {mean:.2f}, deviation {half / 2**0.5:.2f} |" in beside.write_runs(manifest)
    with pytest.raises(SystemExit, match="which has no shipped checkpoint; use benchmarks/ship.py first"):
        beside.add_run({}, folder)


def test_a_spread_over_permutations_stands_beside_its_checkpoint(tmp_path: Path) -> None:
    found = {"checkpoint": "some/a_5w1s.ckpt", "sha256": "12", "permutations": 24, "accuracy": 0.91234, "deviation": 0.01,
             "best": 0.93, "worst": 0.9, "tasks": 600}  # fmt: skip
    (tmp_path / "found.json").write_text(json.dumps(found))
    manifest: dict[str, dict[str, Any]] = {"a_5w1s.ckpt": {"sha256": "12"}, "b.ckpt": {}}
    assert beside.add_permutations(manifest, tmp_path / "found.json") == "a_5w1s.ckpt"
    assert "| `a_5w1s` | 24 | 91.23 | 1.00 | 93.00 | 90.00 |" in beside.write_permutations(manifest)
    with pytest.raises(SystemExit, match=r"of a_5w1s.ckpt, which is not shipped"):
        beside.add_permutations({}, tmp_path / "found.json")
    with pytest.raises(SystemExit, match="of another a_5w1s.ckpt than the shipped one; run benchmarks/permutations.py"):
        beside.add_permutations({"a_5w1s.ckpt": {"sha256": "34"}}, tmp_path / "found.json")
    (tmp_path / "found.json").write_text(json.dumps({**found, "inner_steps": 1}))
    with pytest.raises(SystemExit, match="was made with --inner_steps 1; leave that out, for those of a_5w1s.ckpt's"):
        beside.add_permutations({"a_5w1s.ckpt": {"sha256": "12"}}, tmp_path / "found.json")


def test_an_ensemble_stands_beside_its_best_member(tmp_path: Path) -> None:
    found = {"config": "mamlpp_omniglot_5w1s", "alone": [[0.98, 0.1], [0.9876, 0.1]], "ensemble": [0.9912, 0.002]}
    (tmp_path / "found.json").write_text(json.dumps(found))
    row = {"config": "mamlpp_omniglot_5w1s", "test_accuracy": 98.76, "ci95": 0.3}
    manifest: dict[str, dict[str, Any]] = {"mamlpp_omniglot_5w1s.ckpt": row}
    assert beside.add_ensemble(manifest, tmp_path / "found.json") == "mamlpp_omniglot_5w1s.ckpt"
    assert "| `mamlpp_omniglot_5w1s` | 98.76 ± 0.30 | 98.00, 98.76 | 99.12 ± 0.20 |" in beside.write_ensembles(manifest)
    assert "| ensemble of five | 99.12 ± 0.20 | not yet | not yet | not yet |" in ship.write_matrix(manifest)
    with pytest.raises(SystemExit, match="which is not shipped"):
        beside.add_ensemble({}, tmp_path / "found.json")
    row["test_accuracy"] = 97.0
    with pytest.raises(
        SystemExit, match="so it is not one of them; run benchmarks/ensemble.py on the run that is shipped"
    ):
        beside.add_ensemble(manifest, tmp_path / "found.json")
