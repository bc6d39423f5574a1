"""Put the best checkpoint of a run among the shipped ones, with its row in the manifest, and write the model cards anew.

All numbers come from the run's own ``run.json``. The checkpoint takes the name of the run's config.

python benchmarks/ship.py runs/maml_omniglot_20w1s/version_0 --note "trained in two parts"
python benchmarks/ship.py    (the cards alone, and the tables of the pages)
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from metalearn.cli.shipped import config_path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints"
MANIFEST = FOLDER / "manifest.json"
PAGE = ROOT / "docs" / "background" / "accuracies.md"
MATRIX_PAGES = (ROOT / "README.md", ROOT / "configs" / "README.md")
BEGIN, END = "<!-- from checkpoints/manifest.json, by benchmarks/ship.py -->", "<!-- end -->"
PUBLISHED = {
    "maml": {"5w1s": "98.7 ± 0.4", "5w5s": "99.9 ± 0.1", "20w1s": "95.8 ± 0.3", "20w5s": "98.9 ± 0.2"},
    "fomaml": {"5w1s": "98.3 ± 0.5", "5w5s": "99.2 ± 0.2", "20w1s": "89.4 ± 0.5", "20w5s": "97.9 ± 0.1"},
    "anil": {"20w1s": "96.2 ± 0.5", "20w5s": "98.0 ± 0.3"},
    "mamlpp": {"5w1s": "99.5", "5w5s": "99.9", "20w1s": "97.7", "20w5s": "99.3"},
}
"""Finn et al. 2017, Nichol et al. 2018, Raghu et al. 2020, Antoniou et al. 2019 (an ensemble of five, recalled); per cent."""
KEPT = (
    "state_dict", "hyper_parameters", "pytorch-lightning_version", "epoch", "global_step", "metalearn", "hparams_name",
)  # fmt: skip
"""What is shipped of a checkpoint: nothing that goes on with the training, and no name of a folder of the run."""
NAMES = {"maml": "MAML", "fomaml": "first-order MAML", "anil": "ANIL", "mamlpp": "MAML++"}
UNIMPORTANT = ("data.root", "trainer.enable_progress_bar")
"""What a run was told that changes nothing of it."""
HEAD = """# Checkpoints

Each was trained by the configuration of its name. A file holds weights and a description of them, as plain types. They are
installed with the package, and `--ckpt_path` takes their names. `manifest.json` holds what stands here;
`benchmarks/ship.py` writes this page from it, and `benchmarks/verify_checkpoints.py` tests every one again.
"""


def make_lean(checkpoint: dict[str, Any], config: str) -> bytes:
    """The file that is shipped of a run's checkpoint.

    Args:
        checkpoint: as it was saved.
        config: the name of the run's config, whose root takes the place of the machine's.
    """
    known = {key: value for key, value in checkpoint["metalearn"].items() if key != "rng"}
    options = yaml.safe_load(known["config"])
    shipped = yaml.safe_load(config_path(config).read_text())
    if "root" in options["data"]["init_args"]:
        options["data"]["init_args"]["root"] = shipped["data"]["init_args"]["root"]
    known["config"] = yaml.safe_dump(options)
    lean = {key: checkpoint[key] for key in KEPT if key in checkpoint} | {"metalearn": known}
    file = io.BytesIO()
    torch.save(lean, file)
    return file.getvalue()


def describe_run(folder: Path, note: str) -> tuple[bytes, str, dict[str, Any]]:
    """The file that is shipped of the run's best checkpoint, the name of its config, and its row.

    Args:
        folder: of the run.
        note: what a reader must know of it.
    """
    record = json.loads((folder / "run.json").read_text())
    if record["status"] != "finished":
        raise SystemExit(
            f"{folder} is {record['status']}, so its numbers are not those of a whole run; let it end first"
        )
    summary, origin = record["summary"], record["origin"]
    config = summary["config"]
    path = folder / "checkpoints" / Path(summary["checkpoint"]).name
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    content = make_lean(checkpoint, config)
    parts = [*record["earlier"], record]
    options = yaml.safe_load((folder / "config.yaml").read_text())
    training, test = summary["training"], {key: value for key, value in summary["test"].items() if "accuracy" in key}
    percent = {key: (round(100 * value["mean"], 2), round(100 * value["ci95"], 2)) for key, value in test.items()}
    # a run measures this where queries help each other alone; with `norm: support` each is judged alone as it is
    alone = percent.get("accuracy_independent", percent["accuracy"])
    row = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "config": config,
        "changes": find_changes(parts[0]["changes"], config),
        "steps": training["steps"],
        "checkpoint_step": checkpoint["global_step"],
        "tasks": training["steps"] * options["data"]["init_args"]["tasks_per_batch"],
        "test_accuracy": percent["accuracy"][0],
        "ci95": percent["accuracy"][1],
        "test_tasks": test["accuracy"]["tasks"],
        "before_adaptation": percent["accuracy_before_adaptation"][0],
        "each_query_alone": alone[0],
        "each_query_alone_ci95": alone[1],
        "cpu_seconds": round(training["cpu_seconds_with_earlier_parts"]),
        "parts": len(parts),
        "machine": f"{origin['machine']['cpu']}, {origin['machine']['threads']} thread{'s' * (origin['machine']['threads'] > 1)}",
        "versions": origin["versions"],
        "commit": (origin["commit"] or {}).get("hash"),
    }
    return content, config, {**row, "note": note} if note else row


def find_changes(told: dict[str, str], config: str) -> dict[str, str]:
    """What a run was told that its config, as it is now, does not say, by the names of the options."""
    options = yaml.safe_load(config_path(config).read_text())

    def says(name: str, value: str) -> bool:
        place: Any = options
        for key in name.split("."):
            if isinstance(place, dict) and key not in place:
                place = place.get("init_args")  # data.train_tasks is short for data.init_args.train_tasks
            place = place.get(key) if isinstance(place, dict) else None
        return place is not None and bool(place == yaml.safe_load(value))

    return {name: value for name, value in told.items() if name not in UNIMPORTANT and not says(name, value)}


def write_cards(manifest: dict[str, dict[str, Any]]) -> str:
    """The page of model cards."""
    return "\n".join([HEAD, *(write_card(name, row) for name, row in manifest.items())])


def write_card(name: str, row: dict[str, Any]) -> str:
    """One card."""
    stem = name.removesuffix(".ckpt")
    header = [line[2:] for line in config_path(row["config"]).read_text().splitlines() if line.startswith("# ")]
    needs_root = "--data.root DIR" in header[0]
    lines = [
        f"## {stem}", "", " ".join(line for line in header[1:] if line), "",
        "```", f"python -m metalearn test --ckpt_path {stem}{' --data.root DIR' if needs_root else ''}", "```", "",
        "| | |", "|---|---|",
        f"| accuracy | {row['test_accuracy']:.2f} % ± {row['ci95']:.2f} over {row['test_tasks']} test tasks |",
    ]  # fmt: skip
    if "each_query_alone" in row:
        lines += [
            f"| each query alone | {row['each_query_alone']:.2f} % ± {row['each_query_alone_ci95']:.2f} |",
            f"| before adaptation | {row['before_adaptation']:.2f} % |",
        ]
    chosen = f", of which validation chose {row['checkpoint_step']:,}" if "checkpoint_step" in row else ""
    lines.append(f"| outer steps | {row['steps']:,}{chosen} |")
    if "cpu_seconds" in row:
        changes = " ".join(f"--{key} {value}" for key, value in row["changes"].items())
        lines += [
            f"| tasks seen | {row['tasks']:,} |",
            f"| training | {row['cpu_seconds']:,} CPU seconds, in {row['parts']} part{'s' * (row['parts'] > 1)} |",
            f"| command | `python -m metalearn fit --config {row['config']}"
            f"{' --data.root DIR' if needs_root else ''}{' ' + changes if changes else ''}` |",
            f"| machine | {row['machine']} |",
            f"| versions | {', '.join(f'{package} {number}' for package, number in row['versions'].items())} |",
            f"| commit | {row['commit']} |",
        ]
    lines.append(f"| sha256 | {row['sha256']} |")
    return "\n".join([*lines, *(["", row["note"]] if row.get("note") else []), ""])


def write_table(manifest: dict[str, dict[str, Any]]) -> str:
    """The table of all checkpoints of Omniglot's cells, beside what was published."""
    lines = [
        "| config | accuracy, % | published, % | each query alone, % | before, % | outer steps | tasks seen | CPU seconds |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in manifest.values():
        kind, _, cell = row["config"].partition("_omniglot_")
        if cell and "cpu_seconds" in row:
            published = PUBLISHED.get(kind, {}).get(cell, "-")
            lines.append(
                f"| `{row['config']}` | {row['test_accuracy']:.2f} ± {row['ci95']:.2f} | {published} | "
                f"{row['each_query_alone']:.2f} ± {row['each_query_alone_ci95']:.2f} | {row['before_adaptation']:.2f} | "
                f"{row['steps']:,} | {row['tasks']:,} | {row['cpu_seconds']:,} |"
            )
    return "\n".join(lines)


def write_matrix(manifest: dict[str, dict[str, Any]]) -> str:
    """Accuracies of all algorithms and cells of Omniglot, with the published ones below."""
    cells = list(PUBLISHED["maml"])
    lines = [f"| Omniglot, % | {' | '.join(cells)} |", "|---|" + "---|" * len(cells)]
    for kind, published in PUBLISHED.items():
        rows = [manifest.get(f"{kind}_omniglot_{cell}.ckpt", {}) for cell in cells]
        measured = [f"**{row['test_accuracy']:.2f} ± {row['ci95']:.2f}**" if row else "not yet" for row in rows]
        lines.append(f"| {NAMES[kind]} | {' | '.join(measured)} |")
        if kind == "mamlpp":
            found = [
                f"{row['ensemble']['accuracy']:.2f} ± {row['ensemble']['ci95']:.2f}" if "ensemble" in row else "not yet"
                for row in rows
            ]
            lines.append(f"| ensemble of five | {' | '.join(found)} |")
        known = "recalled, of five" if kind == "mamlpp" else "published"
        lines.append(f"| {known} | {' | '.join(published.get(cell, '-') for cell in cells)} |")
    lake = manifest.get("maml_lake_20w1s.ckpt")
    return "\n".join(lines if lake is None else [*lines, "", write_lake(lake)])


def write_lake(row: dict[str, Any]) -> str:
    """A sentence on Lake's challenge."""
    return (
        f"Lake's challenge, 20 characters of a new alphabet and one drawing of each: an error of "
        f"**{100 - row['test_accuracy']:.2f} % ± {row['ci95']:.2f}** where `{row['config']}` judges the 100 queries of a task "
        f"together, and {100 - row['each_query_alone']:.2f} % ± {row['each_query_alone_ci95']:.2f} where it judges each alone "
        "(people 4.5 %, Bayesian program learning 3.3 %, prototypical networks 13.7 %; on the 20 runs of Lake et al. 2015)."
    )


def put(page: Path, table: str, begin: str = BEGIN) -> None:
    """Write a table between the marks of a page."""
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}")


def save_manifest(manifest: dict[str, dict[str, Any]]) -> None:
    """Write the manifest, in order of the names."""
    MANIFEST.write_text(json.dumps(dict(sorted(manifest.items())), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs that have ended")
    parser.add_argument("--note", default="", help="what a reader must know of them")
    options = parser.parse_args()
    manifest = json.loads(MANIFEST.read_text())
    for folder in options.runs:
        content, config, row = describe_run(folder, options.note)
        (FOLDER / f"{config}.ckpt").write_bytes(content)
        manifest[f"{config}.ckpt"] = row
        print(f"{config}: {row['test_accuracy']:.2f} % ± {row['ci95']:.2f}")
    manifest = dict(sorted(manifest.items()))
    save_manifest(manifest)
    (FOLDER / "README.md").write_text(write_cards(manifest))
    put(PAGE, write_table(manifest))
    for page in MATRIX_PAGES:
        put(page, write_matrix(manifest))


if __name__ == "__main__":
    main()
