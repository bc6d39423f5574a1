"""Put what was measured beside a shipped checkpoint into its row of the manifest, and write the tables of it anew.

These are runs of the same config with another seed or other settings, how much the accuracy depends on the order of the labels,
and an ensemble of the run's best checkpoints. All numbers come from the runs' own files. A checkpoint that is shipped anew loses
them: they belong to its training.

metalearn fit --config anil_omniglot_5w1s --data.root DIR --seed_everything 1 --data.train_seed 1
python benchmarks/beside.py runs/anil_omniglot_5w1s/version_1
python benchmarks/beside.py --permutations FILE    (what permutations.py wrote)
python benchmarks/beside.py --ensembles FILE    (what ensemble.py wrote)
python benchmarks/beside.py    (the tables alone)
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ship import MANIFEST, MATRIX_PAGES, PAGE, describe_run, put, save_manifest, write_matrix

__all__ = ["add_ensemble", "add_permutations", "add_run", "write_permutations", "write_runs"]

KEPT = ("test_accuracy", "ci95", "each_query_alone", "each_query_alone_ci95", "steps", "cpu_seconds", "parts", "commit")
"""What is kept of the row of another run."""
SEEDS = {"seed_everything", "data.train_seed"}
"""What another seed is, as for ``metalearn seeds``: the test tasks stay."""
RUNS = "<!-- other runs, from checkpoints/manifest.json, by benchmarks/beside.py -->"
ENSEMBLES = "<!-- ensembles, from checkpoints/manifest.json, by benchmarks/beside.py -->"
PERMUTATIONS = "<!-- permutations, from checkpoints/manifest.json, by benchmarks/beside.py -->"


def add_run(manifest: dict[str, dict[str, Any]], folder: Path) -> str:
    """Add another run of a shipped config, and give the config's name; the same run twice is there once."""
    _, config, row = describe_run(folder, "")
    shipped = manifest.get(f"{config}.ckpt")
    if shipped is None:
        raise SystemExit(
            f"{folder} is a run of {config}, which has no shipped checkpoint; use benchmarks/ship.py first"
        )
    if not row["changes"]:
        raise SystemExit(f"{folder} is a run of {config} without a change, as the shipped one is; use another seed")
    kept = [other for other in shipped.get("others", []) if other["changes"] != row["changes"]]
    added = {"changes": row["changes"], **{key: row[key] for key in KEPT}}
    shipped["others"] = sorted([*kept, added], key=lambda other: sorted(other["changes"].items()))
    return config


def add_permutations(manifest: dict[str, dict[str, Any]], path: Path) -> str:
    """Add what ``permutations.py`` found of a shipped checkpoint, and give its name."""
    found = json.loads(path.read_text())
    name = f"{Path(found.pop('checkpoint')).name.removesuffix('.ckpt')}.ckpt"
    if name not in manifest:
        raise SystemExit(f"{path} is of {name}, which is not shipped; use benchmarks/ship.py first")
    if found.pop("sha256") != manifest[name]["sha256"]:
        raise SystemExit(f"{path} is of another {name} than the shipped one; run benchmarks/permutations.py again")
    if (steps := found.pop("inner_steps", None)) is not None:
        raise SystemExit(
            f"{path} was made with --inner_steps {steps}; leave that out, for those of {name}'s evaluation"
        )
    manifest[name]["permutations"] = {
        key: round(100 * value, 2) if isinstance(value, float) else value for key, value in found.items()
    }
    return name


def add_ensemble(manifest: dict[str, dict[str, Any]], path: Path) -> str:
    """Add what ``ensemble.py`` found of a run whose best checkpoint is shipped, and give its name."""
    found = json.loads(path.read_text())
    name = f"{found['config']}.ckpt"
    if name not in manifest:
        raise SystemExit(f"{path} is of {name}, which is not shipped; use benchmarks/ship.py first")
    alone = [round(100 * accuracy, 2) for accuracy, _ in found["alone"]]
    if manifest[name]["test_accuracy"] not in alone:
        raise SystemExit(
            f"{path} is of checkpoints with {alone} %, but {name} has {manifest[name]['test_accuracy']} %, so it is not one of "
            "them; run benchmarks/ensemble.py on the run that is shipped"
        )
    accuracy, ci95 = (round(100 * value, 2) for value in found["ensemble"])
    manifest[name]["ensemble"] = {"members": len(alone), "accuracy": accuracy, "ci95": ci95, "alone": alone}
    return name


def _write_run(config: str, changes: dict[str, Any], row: dict[str, Any]) -> str:
    told = " ".join(f"`--{key} {value}`" for key, value in changes.items()) or "as shipped"
    return (
        f"| `{config}` | {told} | {row['test_accuracy']:.2f} ± {row['ci95']:.2f} | "
        f"{row['each_query_alone']:.2f} ± {row['each_query_alone_ci95']:.2f} | {row['cpu_seconds']:,} |"
    )


def _write_seeds(row: dict[str, Any]) -> Iterator[str]:
    """The mean and the deviation over seeds, of the shipped run and those that differ by their seed alone."""
    others = [other for other in row["others"] if set(other["changes"]) == SEEDS]
    if others:
        spread = []
        for key in ("test_accuracy", "each_query_alone"):
            values = [row[key], *(other[key] for other in others)]
            spread.append(f"{statistics.mean(values):.2f}, deviation {statistics.stdev(values):.2f}")
        yield f"| `{row['config']}` | **{len(others) + 1} seeds** | {spread[0]} | {spread[1]} | |"


def write_runs(manifest: dict[str, dict[str, Any]]) -> str:
    """The table of other runs, each config's below the shipped one."""
    if not any("others" in row for row in manifest.values()):
        return "No other run was made yet."
    lines = ["| config | | accuracy, % | each query alone, % | CPU seconds |", "|---|---|---|---|---:|"]
    for row in manifest.values():
        if "others" in row:
            lines += [_write_run(row["config"], row["changes"], row)]
            lines += [_write_run(row["config"], other["changes"], other) for other in row["others"]]
            lines += _write_seeds(row)
    return "\n".join(lines)


def write_permutations(manifest: dict[str, dict[str, Any]]) -> str:
    """The table of how much the order of labels counts."""
    lines = [
        "| checkpoint | orders a task | accuracy, % | deviation within a task, points | best order, % | worst order, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in manifest.items():
        if "permutations" in row:
            found = row["permutations"]
            numbers = " | ".join(f"{found[key]:.2f}" for key in ("accuracy", "deviation", "best", "worst"))
            lines.append(f"| `{name.removesuffix('.ckpt')}` | {found['permutations']} | {numbers} |")
    return "\n".join(lines)


def write_ensembles(manifest: dict[str, dict[str, Any]]) -> str:
    """The table of ensembles, beside the shipped single model."""
    rows = [row for row in manifest.values() if "ensemble" in row]
    if not rows:
        return "No ensemble was made yet."
    lines = ["| config | single model, % | each of the ensemble, % | ensemble, % |", "|---|---|---|---|"]
    for row in rows:
        found = row["ensemble"]
        alone = ", ".join(f"{accuracy:.2f}" for accuracy in found["alone"])
        lines.append(
            f"| `{row['config']}` | {row['test_accuracy']:.2f} ± {row['ci95']:.2f} | {alone} | "
            f"{found['accuracy']:.2f} ± {found['ci95']:.2f} |"
        )
    return "\n".join(lines)


def write_page(manifest: dict[str, dict[str, Any]]) -> None:
    """The tables of the page, and the matrix that shows ensembles."""
    put(PAGE, write_runs(manifest), RUNS)
    put(PAGE, write_permutations(manifest), PERMUTATIONS)
    put(PAGE, write_ensembles(manifest), ENSEMBLES)
    for page in MATRIX_PAGES:
        put(page, write_matrix(manifest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs that have ended")
    parser.add_argument("--permutations", nargs="*", type=Path, default=[], help="files that permutations.py wrote")
    parser.add_argument("--ensembles", nargs="*", type=Path, default=[], help="files that ensemble.py wrote")
    options = parser.parse_args()
    manifest = json.loads(MANIFEST.read_text())
    for folder in options.runs:
        print(f"added to {add_run(manifest, folder)}: {folder}")
    for path in options.permutations:
        print(f"added to {add_permutations(manifest, path)}: {path}")
    for path in options.ensembles:
        print(f"added to {add_ensemble(manifest, path)}: {path}")
    save_manifest(manifest)
    write_page(manifest)


if __name__ == "__main__":
    main()
