"""P, the diagonal preconditioner of RMSProp and Adam, from an optimizer's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_readable
from flatmin.risk import ParameterLayout, Risk

__all__ = ["adaptive_preconditioner", "check_preconditioner"]


def adaptive_preconditioner(
    optimizer: torch.optim.Optimizer, module: nn.Module
) -> Tensor:
    """Return the diagonal of P = diag(1/(√v + eps)), as PyTorch's last step had it.

    v is the running mean of squared gradients: of RMSProp, less the square of the mean
    gradient if it is centred; of Adam and AdamW, divided by 1 - β₂ᵗ, or its maximum
    with ``amsgrad``. PyTorch adds eps to the root, the paper (equation 15) to v. P is
    frozen at its last value: it holds the gradient of the last step and not that of the
    next. Momentum, and Adam's mean of gradients, are not in it: they spread a step's
    noise over later steps, and P multiplies what they have made of it.

    Of a fitted estimator:
    ``adaptive_preconditioner(clf.net_.optimizer_, clf.module_)``.

    Parameters
    ----------
    optimizer : torch.optim.RMSprop, Adam or AdamW
        After a step.
    module : torch.nn.Module
        Whose trainable parameters it steps: θ lists them in this order.

    Returns
    -------
    Tensor of shape (D,)
        In the dtype of the parameters.

    Raises
    ------
    TypeError
        If the optimizer is another one.
    ValueError
        If it does not step a parameter of the module or has not done so yet, or an
        entry is not finite and positive.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195, equations 14 to 17.

    Examples
    --------
    One step of RMSProp with the gradient 2 leaves v = 0.01 · 4:

    >>> module = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.RMSprop(module.parameters())
    >>> module.weight.grad = torch.full((1, 1), 2.0)
    >>> optimizer.step()
    >>> adaptive_preconditioner(optimizer, module)
    tensor([5.0000])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module. Got {type(module).__name__}."
        )
    root = _ROOTS.get(type(optimizer))
    if root is None:
        raise TypeError(
            "optimizer must be a torch.optim.RMSprop, Adam or AdamW. "
            f"Got {type(optimizer).__name__}. SGD has none, P = I; of another "
            "optimizer compute what multiplies its gradient, and pass that vector."
        )
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    parts = {}
    for name, parameter in named.items():
        if parameter not in groups:
            raise ValueError(
                f"The optimizer must step every trainable parameter of the module. Got "
                f"one that does not hold {name}: hand in the module that it was made "
                "for, or set requires_grad=False on what it leaves alone."
            )
        state, group = optimizer.state.get(parameter), groups[parameter]
        if not state:
            raise ValueError(
                "The optimizer must have taken a step: before, it has no squared "
                f"gradients. Got no state of {name}."
            )
        parts[name] = 1 / (root(state, group) + group["eps"])
    diagonal = ParameterLayout.of(module).flatten(parts)
    return _check_positive(diagonal, "The preconditioner in the optimizer's state")


def _of_rmsprop(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    square: Tensor = state["square_avg"]
    if group["centered"]:
        square = square.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    return square.sqrt()


def _of_adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    square: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction: float = 1 - float(group["betas"][1]) ** float(state["step"])
    root: Tensor = square.sqrt() / correction**0.5
    return root


_ROOTS = {
    torch.optim.RMSprop: _of_rmsprop,
    torch.optim.Adam: _of_adam,
    torch.optim.AdamW: _of_adam,
}


def check_preconditioner(preconditioner: Tensor, risk: Risk) -> Tensor:
    """Return the diagonal of P in the risk's dtype and on its device, or raise.

    Parameters
    ----------
    preconditioner : Tensor of shape (D,)
    risk : Risk

    Returns
    -------
    Tensor of shape (D,)

    Raises
    ------
    TypeError
        If it is no tensor of real numbers.
    ValueError
        If the shape does not fit, or an entry is not finite and positive.
    """
    check_readable("preconditioner", preconditioner)
    try:
        given = torch.as_tensor(preconditioner)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"preconditioner must be a Tensor. Got {type(preconditioner).__name__}."
        ) from error
    if tuple(given.shape) != (risk.n_params,):
        raise ValueError(
            "preconditioner must be the diagonal of P, a real vector of the "
            f"D = {risk.n_params} parameters. Got shape {tuple(given.shape)}, "
            f"{given.dtype}."
        )
    diagonal = given.detach().to(device=risk.device, dtype=risk.dtype, copy=True)
    return _check_positive(diagonal, f"preconditioner, in {risk.dtype},")


def _check_positive(diagonal: Tensor, what: str) -> Tensor:
    wrong = ~(diagonal.isfinite() & (diagonal > 0))
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"{what} must be finite and positive. Got "
            f"{float(diagonal[first])} at coordinate {first}, and as bad at "
            f"{int(wrong.sum())} of {len(diagonal)} in all. Look at eps, and at "
            "squared gradients that are 0 or not finite."
        )
    return diagonal
