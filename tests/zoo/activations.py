"""Every activation of ``torch.nn``, functions like them, and some exactly at 0."""

import torch
from torch import nn
from torch.nn import functional as F

from ._nets import N, around, between

KINDS = {}

_LAYERS = {
    "CELU": nn.CELU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "GLU": nn.GLU,
    "Hardshrink": nn.Hardshrink,
    "Hardtanh": nn.Hardtanh,
    "LeakyReLU": nn.LeakyReLU,
    "LogSigmoid": nn.LogSigmoid,
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "Mish": nn.Mish,
    "PReLU": nn.PReLU,
    "PReLU, one each": lambda: nn.PReLU(4),
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6,
    "RReLU": nn.RReLU,
    "SELU": nn.SELU,
    "SiLU": nn.SiLU,
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "Sigmoid": nn.Sigmoid,
    "Softmax": lambda: nn.Softmax(1),
    "Softmin": lambda: nn.Softmin(1),
    "Softplus": nn.Softplus,
    "Softplus with a threshold": lambda: nn.Softplus(2, 1),
    "Softshrink": nn.Softshrink,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
    "Tanhshrink": nn.Tanhshrink,
    "Threshold": lambda: nn.Threshold(0.2, -1.0),
}
for name, make in _LAYERS.items():
    KINDS[name] = lambda make=make: around(make(), 2 * torch.randn(N, 4))

KINDS["Softmax2d"] = lambda: around(nn.Softmax2d(), torch.randn(N, 1, 3, 3))


class _Hardsigmoid(nn.Module):
    def forward(self, h):
        return F.relu6(h + 3) / 6


class _Hardswish(nn.Module):
    def forward(self, h):
        return h * F.relu6(h + 3) / 6


def _with_reference(layer, reference):
    """PyTorch has no second derivative, or one that is wrong."""
    X = 3 * torch.randn(N, 4)
    with torch.random.fork_rng():
        spelled_out = around(reference, X).module
    return around(layer, X, reference=spelled_out)


KINDS["Hardsigmoid"] = lambda: _with_reference(nn.Hardsigmoid(), _Hardsigmoid())
KINDS["Hardswish"] = lambda: _with_reference(nn.Hardswish(), _Hardswish())
KINDS["Hardsigmoid in place"] = lambda: _with_reference(
    nn.Hardsigmoid(inplace=True), _Hardsigmoid()
)
KINDS["Hardswish in place"] = lambda: _with_reference(
    nn.Hardswish(inplace=True), _Hardswish()
)

_FUNCTIONS = {
    "F.relu_": F.relu_,
    "Tensor.tanh_": lambda h: h.clone().tanh_(),
    "F.gumbel_softmax's softmax": lambda h: F.softmax(h / 0.5, -1),
    "torch.erf": torch.erf,
    "torch.atan2": lambda h: torch.atan2(h[:, :2], h[:, 2:]),
    "torch.logaddexp": lambda h: torch.logaddexp(h[:, :2], h[:, 2:]),
    "torch.xlogy": lambda h: torch.xlogy(h, h.exp()),
    "torch.sinc": torch.sinc,
    "torch.special.i0e": torch.special.i0e,
    "torch.lgamma": lambda h: torch.lgamma(h.exp()),
    "torch.special.ndtri": lambda h: torch.special.ndtri(h.sigmoid()),
    "torch.clamp": lambda h: h.clamp(-1, 1),
    "torch.abs": torch.abs,
    "torch.maximum": lambda h: torch.maximum(h[:, :2], h[:, 2:]),
    "torch.hypot": lambda h: torch.hypot(h[:, :2], h[:, 2:]),
    "torch.pow": lambda h: h.abs() ** 1.5,
    "torch.nan_to_num": lambda h: torch.nan_to_num(h),
    "torch.round of a constant": lambda h: h + h.detach().round(),
    "torch.fmod": lambda h: torch.fmod(h, 0.7),
}
for name, function in _FUNCTIONS.items():
    KINDS[name] = lambda function=function: between(function, scale=2.0)


def _at_zero(function, **known):
    """Inputs of zero and no bias: the function is asked at 0 exactly."""
    X = torch.randn(N, 4)
    X[:3] = 0
    front = nn.Linear(4, 4, bias=False)
    return around(nn.Identity(), X, front=front, call=lambda _, h: function(h), **known)


KINDS["torch.sinc at 0"] = lambda: _at_zero(torch.sinc, second="difference")
KINDS["ReLU at 0"] = lambda: _at_zero(torch.relu)
KINDS["Softplus at 0"] = lambda: _at_zero(F.softplus)
