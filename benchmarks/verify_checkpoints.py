"""Test every shipped checkpoint again, and hold its accuracy against the manifest's, to the last digit.

python benchmarks/verify_checkpoints.py --root DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "checkpoints"


def test(name: str, root: str | None, folder: Path) -> tuple[float, float]:
    """Accuracy and interval in per cent, as the command line prints them."""
    command = [sys.executable, "-m", "metalearn", "test", "--ckpt_path", str(FOLDER / name), "--json"]
    if root is not None:
        command += ["--data.root", root]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    accuracy = json.loads(done.stdout)["test"]["accuracy"]
    return round(100 * accuracy["mean"], 2), round(100 * accuracy["ci95"], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of checkpoints; all otherwise")
    parser.add_argument("--root", help="where Omniglot is")
    options = parser.parse_args()
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    wrong = 0
    for name in options.names or manifest:
        row = manifest[name if name.endswith(".ckpt") else f"{name}.ckpt"]
        path = FOLDER / f"{name.removesuffix('.ckpt')}.ckpt"
        same_file = hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
        with tempfile.TemporaryDirectory() as folder:
            seen = test(path.name, options.root if "glyphs" not in name else None, Path(folder))
        right = same_file and seen == (row["test_accuracy"], row["ci95"])
        wrong += not right
        print(
            f"{path.stem}: {seen[0]:.2f} % ± {seen[1]:.2f}, the manifest says {row['test_accuracy']:.2f} ± {row['ci95']:.2f}"
            f"{'' if same_file else ', of another file'}: {'right' if right else 'WRONG'}",
            flush=True,
        )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
