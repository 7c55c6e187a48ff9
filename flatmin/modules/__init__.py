"""The small networks of the paper, as plain ``torch.nn.Module`` classes."""

from flatmin.modules._lenet import LeNet
from flatmin.modules._mlp import MLP, cubic_regression_mlp
from flatmin.modules._vgg import VGG11

__all__ = ["MLP", "VGG11", "LeNet", "cubic_regression_mlp"]
