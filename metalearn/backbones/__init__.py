"""Networks in common use for few-shot learning. Each ends in a linear layer called ``head``."""

from metalearn.backbones.conv4 import Conv4
from metalearn.backbones.mlp import MLP
from metalearn.backbones.resnet12 import ResNet12

__all__ = ["MLP", "Conv4", "ResNet12"]
