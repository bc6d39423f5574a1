"""Benchmarks at toy size. Their files stand in a folder of scripts, which import each other by their bare names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
