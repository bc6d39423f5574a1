"""The order of the pages of each gallery."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ORDER", "ReadingOrder"]

ORDER = [
    "own_images", "inner_steps_curve", "compare_algorithms", "ridge_heads", "sinusoid_noise",
    "own_data", "torchvision_backbone", "own_module", "own_algorithm",
    "hyper_cleaning", "hypergradient_error",
    "exported_model", "several_processes", "torchrun_slurm", "sweep",
    "architecture_search", "missing_modalities", "augmentation_strength", "sparse_features", "smoothed_constraints",
    "network_utility", "quantum_state",
]  # fmt: skip
"""First what the methods do, then what is your own, bilevel problems, and what comes after a first training. Then the
bilevel examples."""


class ReadingOrder:
    """Sorts the scripts of a folder by :data:`ORDER`, as sphinx-gallery asks for it.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, filename: str) -> int:
        """The place of a script."""
        return ORDER.index(Path(filename).stem)
