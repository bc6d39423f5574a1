"""Tiny made data sets, and a way to run the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def make_omniglot(
    root: Path, alphabets: int = 6, characters: int = 20, drawings: int = 20, archive: bool = True
) -> Path:
    """Scribbles in Omniglot's layout: 105 x 105 one-bit images."""
    root.mkdir(parents=True, exist_ok=True)
    for part, first in (("images_background", 0), ("images_evaluation", alphabets // 2)):
        files = {}
        for alphabet in range(first, first + alphabets // 2):
            for character in range(characters):
                rng = np.random.default_rng([alphabet, character])
                stamp = rng.random((7, 7)) < 0.4
                for drawing in range(drawings):
                    noisy = stamp ^ (np.random.default_rng([alphabet, character, drawing]).random((7, 7)) < 0.05)
                    name = (
                        f"{part}/Alphabet_{alphabet}/character{character + 1:02d}/{character:04d}_{drawing + 1:02d}.png"
                    )
                    files[name] = Image.fromarray(
                        (~np.kron(noisy, np.ones((15, 15), bool))).astype(np.uint8) * 255
                    ).convert("1")
        for name, image in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        if archive:
            with zipfile.ZipFile(root / f"{part}.zip", "w") as file:
                for name in files:
                    file.write(root / name, name)
                    (root / name).unlink()
            for folder in sorted((root / part).rglob("*"), reverse=True):
                folder.rmdir()
            (root / part).rmdir()
    return root


def make_folder(root: Path, classes: int = 12, images: int = 6, size: int = 20) -> Path:
    """A folder of colour images per class."""
    for label in range(classes):
        (root / f"class{label:02d}").mkdir(parents=True, exist_ok=True)
        for index in range(images):
            pixels = np.random.default_rng([label, index]).integers(0, 60, (size, size, 3), np.uint8)
            pixels[..., label % 3] += np.uint8(15 * label)
            Image.fromarray(pixels).save(root / f"class{label:02d}" / f"{index}.png")
    return root


def run_cli(*args: object, cwd: Path, cache: Path, code: int = 0, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run ``python -m metalearn`` as a user does, and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "metalearn", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "METALEARN_CACHE": str(cache), "OMP_NUM_THREADS": str(threads), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done
