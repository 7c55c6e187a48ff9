"""Derivatives along a direction, by forward mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor, nn
from torch._functorch.eager_transforms import (
    _undo_create_differentiable,
    jvp_increment_nesting,
    safe_unpack_dual,
)
from torch.autograd.forward_ad import _set_fwd_grad_enabled, dual_level
from torch.nn.modules.batchnorm import _NormBase

from flatmin._utils.quiet import ignored

__all__ = ["has_norms", "load_formulas", "push_forward"]


def push_forward(
    function: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor
) -> Tensor:
    """Return J v, as by ``torch.func.jvp``.

    That one loads :func:`load_formulas` in any case. Here an operation that needs them
    raises NotImplementedError before they are loaded.

    Parameters
    ----------
    function : callable
        Of θ; its result has the Jacobian J.
    theta : Tensor of shape (D,)
    v : Tensor of shape (D,)

    Returns
    -------
    Tensor
        In the shape of the result.
    """
    with jvp_increment_nesting() as level, _set_fwd_grad_enabled(True), dual_level():
        dual = torch._VF._make_dual(theta, v, level=0)
        tangent = safe_unpack_dual(function(dual), strict=False)[1]
        result: Tensor = _undo_create_differentiable(tangent, level)
        return result


@cache
def load_formulas() -> None:
    """Load what forward mode needs of the backward passes of a few operations.

    Those of layer norm and batch norm are among them, see :func:`has_norms`. PyTorch
    compiles them by TorchScript, which takes more time and memory than the products
    with a small network (.3 s and 25 MiB, torch 2.13).
    """
    with ignored():  # TorchScript's deprecation: a FutureWarning from 2.14 on
        import_module("torch._decomp.decompositions_for_jvp")


def has_norms(module: nn.Module) -> bool:
    """Return whether a layer of a module needs :func:`load_formulas`.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    bool
    """
    return any(isinstance(p, (nn.LayerNorm, _NormBase)) for p in module.modules())
