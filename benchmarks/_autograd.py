"""One module's loss, rows and products by plain autograd in float64, without flatmin.

By no trick that flatmin has: the rows and the Jacobian one backward pass a number, the
loss's Hessian in the outputs dense, H v a double backward pass that is held against
differences of the gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["Autograd", "AutogradOfLosses", "in_float64"]

_STEP = 1e-4  # of the differences of the gradient


class in_float64(TorchFunctionMode):  # noqa: N801 - a context manager
    """Takes a module's own casts to float32 for casts to float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = tuple(_wide(arg) for arg in args)
        return func(*args, **{name: _wide(v) for name, v in (kwargs or {}).items()})


def _wide(argument: Any) -> Any:
    is_narrow = argument is torch.float32 or argument == "torch.FloatTensor"
    return torch.float64 if is_narrow else argument


class AutogradOfLosses:
    """A module's quantities from its losses alone: no G v.

    Parameters
    ----------
    module : torch.nn.Module
        Copied, and taken in float64; in the mode that it is in.
    losses : callable
        Module to the ℓ̃ᵢ, (N,), whose mean is L.
    """

    def __init__(
        self, module: nn.Module, losses: Callable[[nn.Module], Tensor]
    ) -> None:
        self.module = copy.deepcopy(module).double()
        for part in self.module.modules():  # double() leaves plain attributes
            for name, held in list(vars(part).items()):
                if isinstance(held, Tensor) and held.is_floating_point():
                    setattr(part, name, held.double())
        self.params = [p for p in self.module.parameters() if p.requires_grad]
        self._losses_of = losses
        # The fused kernels of attention have no second derivative.
        self._kernel = lambda: sdpa_kernel(SDPBackend.MATH)

    @cached_property
    def losses(self) -> Tensor:
        """The ℓ̃ᵢ with their graph, (N,)."""
        with self._kernel(), in_float64():
            return self._losses_of(self.module)

    def pull(self, tensor: Tensor, **options: bool) -> Tensor:
        """Return the gradient of a number, (D,)."""
        options = {"retain_graph": True, "allow_unused": True} | options
        with self._kernel():
            parts = torch.autograd.grad(
                tensor, self.params, materialize_grads=True, **options
            )
        return torch.cat([part.reshape(-1) for part in parts])

    @cached_property
    def rows(self) -> Tensor:
        """The gᵢ, (N, D)."""
        return torch.stack([self.pull(loss) for loss in self.losses])

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v by a double backward pass."""
        gradient = self.pull(self.losses.mean(), create_graph=True)
        return self.pull(gradient @ v)

    def hvp_by_differences(self, v: Tensor) -> Tensor:
        """Return H v by central differences of the gradient, at two steps."""
        theta = torch.cat([p.detach().reshape(-1) for p in self.params])
        v = v * self._differentiated()
        h = _STEP * theta.norm() / v.norm()
        wide, narrow = (
            self._gradient_at(theta + step * v) - self._gradient_at(theta - step * v)
            for step in (h, h / 2)
        )
        self._move(theta)
        # The truncation goes with the square of the step: this leaves its fourth power.
        return (4 * narrow / h - wide / (2 * h)) / 3

    def _differentiated(self) -> Tensor:
        """Return 0 where autograd takes θ for a constant, and 1 elsewhere."""
        marks = {id(p): torch.ones_like(p) for p in self.params}
        for part in self.module.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                marks[id(part.weight)][part.padding_idx] = 0
        return torch.cat([mark.reshape(-1) for mark in marks.values()])

    def _gradient_at(self, theta: Tensor) -> Tensor:
        self._move(theta)
        with self._kernel(), in_float64():
            loss = self._losses_of(self.module).mean()
        return self.pull(loss)

    def _move(self, theta: Tensor) -> None:
        sizes = [p.numel() for p in self.params]
        for p, part in zip(self.params, theta.split(sizes), strict=True):
            p.data = part.view(p.shape)  # what graphs have saved stays

    def measure(self, v: Tensor, *, by_differences: bool = False) -> dict[str, Tensor]:
        """Return every quantity that there is."""
        hvp = self.hvp_by_differences if by_differences else self.hvp
        return {
            "L": self.losses.mean().detach(),
            "g₀": self.pull(self.losses.mean()),
            "H v": hvp(v),
            "diag Σ": self.rows.var(0, correction=0),
            "‖gᵢ‖²": self.rows.square().sum(1),
        }


class Autograd(AutogradOfLosses):
    """A module's quantities from its outputs and a loss of these.

    Parameters
    ----------
    module : torch.nn.Module
    outputs : callable
        Module to outputs, (N, ...).
    losses : callable
        Outputs to the ℓ̃ᵢ, (N,).
    """

    def __init__(
        self,
        module: nn.Module,
        outputs: Callable[[nn.Module], Tensor],
        losses: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(module, lambda module: losses(outputs(module)))
        self._outputs_of, self._losses_of_outputs = outputs, losses

    def ggn(self, v: Tensor) -> Tensor:
        """Return G v = Jᵀ S J v / N with all of J and of the loss's Hessian S."""
        with self._kernel(), in_float64():
            outputs = self._outputs_of(self.module)

        def total(flat: Tensor) -> Tensor:
            return self._losses_of_outputs(flat.view(outputs.shape)).sum()

        J = torch.stack([self.pull(number) for number in outputs.flatten()])
        flat = outputs.detach().flatten()
        S = torch.autograd.functional.hessian(total, flat)
        return J.T @ (S @ (J @ v)) / len(outputs)

    def measure(self, v: Tensor, *, by_differences: bool = False) -> dict[str, Tensor]:
        """Return every quantity."""
        found = super().measure(v, by_differences=by_differences)
        return found | {"G v": self.ggn(v)}
