"""The small networks of the paper, as plain ``torch.nn.Module`` classes."""

from flatmin.modules._lenet import LeNet
from flatmin.modules._mlp import MLP, cubic_regression_mlp

__all__ = ["MLP", "LeNet", "cubic_regression_mlp"]
