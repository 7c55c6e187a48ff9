"""Autograd functions of one's own, right and wrong."""

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._nets import between

KINDS = {}
_SECOND = dict.fromkeys(("H v", "ΣHᵢ²v/N"), "needs the second derivatives")
_FIRST = dict.fromkeys(("H v", "ΣHᵢ²v/N"), "needs a gradient that is the derivative")


class _Cube(Function):
    """x³, right at every order."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _CubeForward(Function):
    """With a derivative in forward mode, and for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * t


class _WrongForward(_CubeForward):
    """Its derivative in forward mode is off by a factor."""

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 2 * x**2 * t


class _Once(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _ByNumpy(Function):
    """Its backward leaves autograd, which then sees a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.as_tensor(np.power(x.detach().numpy(), 3))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = 3 * np.square(x.detach().numpy())
        return g * torch.as_tensor(slope)


class _NumpyOnce(_ByNumpy):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.as_tensor(3 * np.square(x.detach().numpy()))


class _WrongSecond(Function):
    """The slope is saved as a number: its derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return ctx.slope * g


class _SavedIntermediate(Function):
    """Saves what it computed in forward, which is no input: H lacks a part."""

    @staticmethod
    def forward(ctx, x):
        e = x.exp()
        ctx.save_for_backward(e)
        return e * e

    @staticmethod
    def backward(ctx, g):
        (e,) = ctx.saved_tensors
        return 2 * e * e * g


class _SlightlyWrongSecond(Function):
    """The second derivative is off by one per cent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (2.97 * x**2 + 0.03 * x.detach() ** 2) * g


class _StraightThrough(Function):
    """Rounds, with the gradient of the identity: it is no derivative of its value."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class _Reversed(Function):
    """Gradient reversal, as in domain adaptation."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class _Sum(Function):
    """Two inputs and two outputs, of which one takes no gradient."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        order = (x * y).argsort(1)
        ctx.mark_non_differentiable(order)
        return x * y, order

    @staticmethod
    def backward(ctx, g, _):
        x, y = ctx.saved_tensors
        return g * y, g * x


KINDS["right at every order"] = lambda: between(_Cube.apply)
KINDS["with jvp and vmap"] = lambda: between(_CubeForward.apply)
KINDS["with a wrong jvp"] = lambda: between(_WrongForward.apply)
KINDS["once_differentiable"] = lambda: between(
    _Once.apply, second="refused", refused=_SECOND
)
KINDS["backward in NumPy"] = lambda: between(
    _ByNumpy.apply, second="refused", refused=_SECOND
)
KINDS["backward in NumPy, once_differentiable"] = lambda: between(
    _NumpyOnce.apply, second="refused", refused=_SECOND
)
KINDS["slope kept as a constant"] = lambda: between(
    _WrongSecond.apply, second="refused", refused=_SECOND
)
KINDS["intermediate value kept"] = lambda: between(
    _SavedIntermediate.apply, second="refused", refused=_SECOND
)
KINDS["second derivative off by a per cent"] = lambda: between(
    _SlightlyWrongSecond.apply, second="refused", refused=_SECOND
)
KINDS["straight through a rounding"] = lambda: between(
    _StraightThrough.apply, second="unchecked", refused=_FIRST
)
KINDS["gradient reversal"] = lambda: between(
    _Reversed.apply, second="unchecked", refused=_FIRST
)
KINDS["two inputs, one output without gradient"] = lambda: between(
    lambda h: _Sum.apply(h, h.sin())[0]
)
KINDS["detached factor"] = lambda: between(lambda h: h * h.detach(), second="unchecked")
KINDS["stopped gradient of a norm"] = lambda: between(
    lambda h: h / h.detach().norm(dim=1, keepdim=True), second="unchecked"
)
KINDS["factor under no_grad"] = lambda: between(
    lambda h: h * _without_gradient(h), second="unchecked"
)


@torch.no_grad()
def _without_gradient(h):
    return h.sigmoid()


def _clipped(h):
    """A gradient clipped by a hook."""
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-0.01, 0.01))
    return h.sin()


# Of the mean over a batch it clips other numbers than of one example.
KINDS["gradient clipped by a hook"] = lambda: between(
    _clipped, second="unchecked", refused="gradient"
)
