from metalearn.backbones.conv4 import Conv4 as Conv4
from metalearn.backbones.huggingface_networks import HuggingFace as HuggingFace
from metalearn.backbones.lstm import LSTMClassifier as LSTMClassifier
from metalearn.backbones.mlp import MLP as MLP
from metalearn.backbones.resnet12 import ResNet12 as ResNet12
from metalearn.backbones.timm_networks import Timm as Timm
from metalearn.backbones.torchvision_networks import Torchvision as Torchvision
from metalearn.backbones.transformer import TransformerClassifier as TransformerClassifier
