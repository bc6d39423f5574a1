"""The list of checkpoints: those that are shipped, and those that runs have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalearn.carried.shipped import shipped_checkpoints, shipped_folder
from metalearn.experiments.folder import Run, find_runs
from metalearn.reports.listing import Listing

__all__ = ["list_checkpoints"]


def list_checkpoints(runs: Path) -> Listing:
    """The shipped checkpoints, and those of the runs below a folder, the newest run last."""
    rows = [*_list_shipped(), *(row for run in find_runs(runs)[0] for row in _list_of_run(run))]
    columns = {"name": "checkpoint", "result": "result", "steps": "steps"}
    return Listing("checkpoints", columns, rows, ["name"], "metalearn test --ckpt_path CHECKPOINT tests one of them.")


def _list_shipped() -> list[dict[str, Any]]:
    manifest = json.loads((shipped_folder() / "manifest.json").read_text(encoding="utf-8"))
    rows = []
    for name, path in shipped_checkpoints().items():
        known = manifest.get(path.name, {})
        mean, ci95 = known.get("test_accuracy"), known.get("ci95")
        rows.append({
            "name": name, "path": str(path), "origin": "the package", "config": known.get("config"), "steps": known.get("steps"),
            "result": None if mean is None else f"{mean:.2f} % ± {ci95:.2f}", "stage": "test", "measure": "accuracy",
            "mean": None if mean is None else mean / 100, "ci95": None if ci95 is None else ci95 / 100,
            "tasks": known.get("test_tasks"),
        })  # fmt: skip
    return rows


def _list_of_run(run: Run) -> list[dict[str, Any]]:
    """Every checkpoint of a run. The result is of the best one, or of the last where no validation has chosen a best."""
    paths = sorted((run.folder / "checkpoints").glob("*.ckpt"))
    names = [path.stem for path in paths]
    tested = "best" if "best" in names else "last"
    rows = []
    for path in paths:
        result = run.result if path.stem == tested else None
        rows.append({
            "name": str(path), "path": str(path), "origin": run.name, "config": " ".join(run.configs) or None,
            "steps": run.steps if path.stem == "last" else None,
            "result": None if result is None else result.text,
            "stage": result.stage if result else None, "measure": result.measure if result else None,
            "mean": result.mean if result else None, "ci95": result.ci95 if result else None,
            "tasks": result.tasks if result else None,
        })  # fmt: skip
    return rows
