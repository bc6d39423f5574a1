"""Put the summary of a run of ``metalearn fit`` in the place of the one that the pages show.

The lines of the box in README.md are the old ones. Wherever a page shows one of them, framed or not, the run's line of that
name takes its place, and so does its accuracy in a sentence.

benchmarks/first_accuracy.sh | tee first.txt
python benchmarks/tables.py first.txt
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md", "docs/quickstart.md", "docs/tutorials/first_model.md", "docs/howto/outputs.md",
    "docs/background/measured.md", "docs/background/accuracies.md",
)  # fmt: skip
BOX = re.compile(r"^╭─ maml_glyphs_5w1s .*?^╰─+╯$", re.MULTILINE | re.DOTALL)


def read_box(text: str, source: str) -> list[str]:
    """The lines of the summary, frame and all."""
    found = BOX.search(text)
    if found is None:
        raise SystemExit(
            f"{source} shows no summary of maml_glyphs_5w1s; give the output of benchmarks/first_accuracy.sh"
        )
    return found[0].splitlines()


def unframe(line: str) -> str:
    """The text of a line of the box."""
    return line.strip("│ ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="what the run has printed")
    options = parser.parse_args()
    old, new = (
        read_box((ROOT / PAGES[0]).read_text(), PAGES[0]),
        read_box(options.output.read_text(), str(options.output)),
    )
    if len(old) != len(new):
        raise SystemExit(f"{options.output} shows {len(new)} lines, README.md {len(old)}; put that box in by hand")
    lines = dict(zip(old, new, strict=True)) | {unframe(was): unframe(line) for was, line in zip(old, new, strict=True)}
    was, now = (re.findall(r"[\d.]+ % ± [\d.]+", box[1])[0] for box in (old, new))
    for page in PAGES:
        text = (ROOT / page).read_text()
        changed = "\n".join(lines.get(line, line).replace(was, now) for line in text.split("\n"))
        if changed != text:
            (ROOT / page).write_text(changed)
            print(f"{page} changed")


if __name__ == "__main__":
    main()
