"""Memory and seconds of opening a pickled cache of images: our reader beside the standard library's restricted one.

A made cache, as miniImageNet's are (``image_data`` and ``class_dict``), is written to a folder and removed afterwards. Each
reader opens it in a process of its own, and looks at every seventh image. Own memory is what the process has for itself,
without the pages of mapped files, which go when memory is short.

python benchmarks/pickles.py --folder /tmp --images 142000
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.datamodules.sources.pickles import load_arrays

SIDE = 84
ALLOWED = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode"),
}  # fmt: skip


class Restricted(pickle.Unpickler):
    """The standard library's reader with an allow-list."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_ours(path: Path) -> Any:
    return load_arrays(path)


def read_library(path: Path) -> Any:
    with path.open("rb") as file:
        return Restricted(file, encoding="bytes").load()


READERS = {"ours": read_ours, "the standard library": read_library}


def write_cache(path: Path, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    classes = {f"n{label:08d}": list(range(100 * label, 100 * label + 100)) for label in range(count // 100)}
    with path.open("wb") as file:
        pickle.dump({"image_data": images, "class_dict": classes}, file, 4)


class OwnMemory(threading.Thread):
    """The most anonymous memory of this process, in KiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.most = max(self.most, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.005)


def measure(reader: str, path: Path) -> None:
    watch = OwnMemory()
    watch.start()
    time.sleep(0.1)
    before, start = watch.most, time.perf_counter()
    images = READERS[reader](path)["image_data"]
    opened = time.perf_counter() - start
    for number in range(0, len(images), 7):
        images[number].sum()
    read = time.perf_counter() - start
    time.sleep(0.1)
    print(
        f"{reader:>20}: opened in {opened:6.2f} s, read in {read:6.2f} s, own memory {(watch.most - before) >> 10:6,} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the cache is made")
    parser.add_argument("--images", type=int, default=142_000, help=f"of {SIDE} x {SIDE}; 142,000 are 3 GB")
    parser.add_argument("--measure", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "cache.pkl"
        write_cache(path, arguments.images)
        for _ in range(2):
            for reader in READERS:
                subprocess.run([sys.executable, __file__, "--measure", reader, str(path)], check=True)


if __name__ == "__main__":
    main()
