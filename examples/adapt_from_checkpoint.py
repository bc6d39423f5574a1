"""Adapt a checkpoint to one task in a plain script, without a Trainer.

python -m metalearn fit && python examples/adapt_from_checkpoint.py runs/maml_glyphs_5w1s/version_0/checkpoints/best.ckpt
"""

import sys

import torch

from metalearn import MAML
from metalearn.datamodules import GlyphsDataModule


def main(checkpoint: str) -> float:
    module = MAML.load_from_checkpoint(checkpoint).eval()
    support, query = GlyphsDataModule(queries=15).episode(seed=1, split="test", index=0)
    with torch.inference_mode():
        adapted = module.adapt(support)
        accuracy = (adapted(query.x).argmax(-1) == query.y).float().mean().item()
    print(f"{len(support.y)} support images, {len(query.y)} queries, {100 * accuracy:.0f} % right")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
