from metalearn.backbones.conv4 import Conv4 as Conv4
from metalearn.backbones.mlp import MLP as MLP
from metalearn.backbones.resnet12 import ResNet12 as ResNet12
