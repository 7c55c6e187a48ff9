"""A loss that needs more than outputs and targets: it is given the module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from flatmin._utils.callables import check_callable
from flatmin.risk.losses.example_loss import ExampleLoss

__all__ = ["GivenLosses", "ModuleLoss"]


@dataclass(frozen=True)
class ModuleLoss:
    """ℓᵢ = f(module, X, y)ᵢ, a loss that calls the module itself.

    For losses of which outputs and targets are not all: a physics-informed network,
    whose loss has derivatives in the inputs, an autoencoder, which has no y, a model
    that computes a loss for each example. Values, gradients, H, Σ and the laws that
    need these work as for any loss. G, ``gld_ggn`` and the Fisher matrix are refused:
    they split ℓᵢ into outputs and the loss of outputs, and f has no such place.
    :meth:`EmpiricalRisk.outputs <flatmin.EmpiricalRisk.outputs>` returns the losses.

    Parameters
    ----------
    f : callable
        Takes a module, X and y, and returns the losses of the examples, of shape (n,).
        The module is a copy of the one of the risk, at the θ in question, in eval mode:
        f must use it, and not one that it closes over. X has n examples in the form in
        which it was given, y is None where there is none. The loss of one example may
        not depend on the others.

    Raises
    ------
    TypeError
        If f cannot be called with three arguments.

    Examples
    --------
    An autoencoder of one number, x → w² x, and its L(w) = (w² - 1)² x²:

    >>> import torch
    >>> from torch import nn
    >>> from flatmin import EmpiricalRisk
    >>> def reconstruction(module, X, y):
    ...     return (module(module(X)) - X).square().mean(1)
    >>> module = nn.Linear(1, 1, bias=False)
    >>> risk = EmpiricalRisk(module, ModuleLoss(reconstruction), [[3.0]])
    >>> risk.value_and_gradient(torch.tensor([2.0]))
    (tensor(81.), tensor([216.]))
    """

    f: Callable[[Any, Any, Any], Tensor]

    def __post_init__(self) -> None:
        check_callable("f", self.f, "module", "X", "y")


class GivenLosses(ExampleLoss):
    """What a module's outputs are where they are the losses."""

    name = "ModuleLoss"

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`; f is given y beside X."""
        return y

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return outputs

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> NoReturn:
        """Raise, for there are no outputs."""
        self.check_output_hessian()

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> NoReturn:
        """Raise, for there are no outputs."""
        self.check_output_hessian()

    def check_output_hessian(self) -> NoReturn:
        """See :meth:`ExampleLoss.check_output_hessian`."""
        raise ValueError(
            "The Gauss-Newton matrix, and what is made of it, needs the Hessian of the "
            "loss in the outputs. Got a ModuleLoss, whose f(module, X, y) does not say "
            "what the outputs are. Use the Hessian or Σ, method='gld_hessian' or "
            "'gld_full', or a loss of outputs and targets."
        )

    def _no_likelihood(self) -> TypeError:
        return TypeError(
            "The Fisher matrix needs a likelihood of outputs: one of cross_entropy, "
            "next_token, squared_error, binary_cross_entropy. Got a ModuleLoss, whose "
            "f(module, X, y) does not tell what the outputs are; use the Hessian or Σ."
        )
