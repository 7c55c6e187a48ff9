"""A loss of somebody else's, one number an example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_dynamic_layer_stack_depth
from torch.func import grad, vjp

from flatmin._utils.messages import first_line
from flatmin._utils.quiet import ignored
from flatmin._utils.trees import Inputs, Tree, leaves_of
from flatmin.risk.autodiff.compiler import load_compiler
from flatmin.risk.losses.class_targets import ClassTargets, as_integers
from flatmin.risk.losses.elementwise import elementwise_targets, unit_targets
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.losses.output_hessian import (
    OutputHessian,
    check_second_derivative,
    root_product,
)
from flatmin.risk.network.holders import holders
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.trials import tolerance
from flatmin.risk.write_guard import WriteGuard

__all__ = ["CallableLoss"]

_N_TRIED = 16


class CallableLoss(ExampleLoss):
    """Any differentiable ``function(outputs, targets)`` with one loss an example.

    Losses of shape ``(n, ...)`` are averaged over all but the first axis. The function
    is given float64 where it takes it, so that its differences of numbers of order one
    (1 - p of a fitted example) keep digits; one of a single dtype rounds as it does: in
    float32 a cross-entropy written out is off by 2e-3 at L = 4e-6, and by half at 2e-9,
    derivatives too. Products with
    the output Hessian are second derivatives; its square root comes from an
    eigendecomposition of the blocks that it splits into.

    Parameters
    ----------
    function : callable
        Takes outputs and targets, returns a Tensor of shape (n,) or (n, ...).
    name : str
        For messages.
    classes : ClassTargets, default=None
        For a function of class indices: which of them count, and how much. The function
        returns the losses times that.
    elementwise : bool, default=False
        Whether outputs and targets are compared one by one: then the targets get the
        outputs' shape and dtype.
    unit_targets : bool, default=False
        Whether the targets lie between 0 and 1.
    sums : bool, default=False
        Whether losses of shape (n, ...) are added up instead.
    whole : callable, default=None
        Outputs and targets to one number for all: what the mean must come to.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        name: str,
        classes: ClassTargets | None = None,
        elementwise: bool = False,
        unit_targets: bool = False,
        sums: bool = False,
        whole: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.function = function
        self.name = name
        self.classes = classes
        self.elementwise = elementwise
        self.unit_targets = unit_targets
        self.sums = sums
        self.whole = whole
        self.guard = WriteGuard(_WRITES.format(name=name), looks=False)
        self._is_checked = False
        self._twin: CallableLoss | None = None  # the same in float64, once tried
        self._has_tried = False

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CallableLoss:
        """See :meth:`ExampleLoss.to`; a loss module is copied."""
        moved = copy.copy(self)
        moved._twin, moved._has_tried = None, False
        if isinstance(self.function, nn.Module):
            moved.function = copy_module(self.function, device=device, dtype=dtype)
        if isinstance(self.whole, nn.Module):
            moved.whole = copy_module(self.whole, device=device, dtype=dtype)
        if self.classes is not None:
            moved.classes = self.classes.to(device, dtype)
        return moved

    def parts(self) -> list[object]:
        """See :meth:`ExampleLoss.parts`."""
        of_twin = [] if self._twin is None else self._twin.parts()
        return holders(self.function) + of_twin

    def guarded(self) -> CallableLoss:
        """See :meth:`ExampleLoss.guarded`."""
        fresh = copy.copy(self)
        fresh.guard = WriteGuard(self.guard.message)
        fresh._twin, fresh._has_tried = None, False  # it would share the other guard
        return fresh

    def trust(self) -> None:
        """See :meth:`ExampleLoss.trust`."""
        self.guard.trust()

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Give targets their form, and try one example."""
        targets = self._form(y, outputs)
        # Copies of one example tell a list of losses from a mean, and two counts of
        # them from the (n, n) that (n, 1) outputs and (n,) targets broadcast to.
        shapes = [
            self._try(outputs.repeat_interleave(n, 0), targets[[0] * n]) for n in (2, 3)
        ]
        if shapes[0][:1] != (2,) or shapes[1] != (3, *shapes[0][1:]):
            raise ValueError(
                f"The loss {self.name} must return one number for each of the n "
                f"examples, shape (n,). Got shape {shapes[0]} for n=2 and {shapes[1]} "
                "for n=3; use reduction='none', do not average, and compare outputs "
                "and targets of one shape."
            )
        self._compare_means(outputs, targets[:_N_TRIED])
        if not self._has_tried:
            self._twin, self._has_tried = self._find_twin(outputs, targets[:1]), True
        return targets

    def target_weights(self, targets: Tensor) -> Tensor | None:
        """See :meth:`ExampleLoss.target_weights`."""
        return None if self.classes is None else self.classes.totals(targets)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`; in float64 where the function allows."""
        if self._twin is not None and outputs.dtype != torch.float64:
            exact = self._twin.per_example(outputs.double(), _in_float64(targets))
            return exact.to(outputs.dtype)
        losses = self._call(self.function, outputs, targets)
        if self.classes is not None:
            return self.classes.mean(losses, targets)
        if losses.ndim == 1:
            return losses
        return losses.flatten(1).sum(1) if self.sums else losses.flatten(1).mean(1)

    def _call(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        outputs: Tensor,
        targets: Tensor,
        **options: bool,
    ) -> Tensor:
        """Call a function that may write into outputs and targets."""

        def unpacked(both: Inputs) -> Tensor:
            return function(*leaves_of(both))

        both = Tree((outputs, targets), (), ())
        return self.guard.call(unpacked, both, **options)

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = V √Λ of Hᵢ = VΛVᵀ."""
        self._check(outputs, targets)
        if self._twin is not None and outputs.dtype != torch.float64:
            exact = outputs.double(), _in_float64(targets), z.double()
            return root_product(self._twin.per_example, *exact, self.name).to(z.dtype)
        return root_product(self.per_example, outputs, targets, z, self.name)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.hessian_product`."""
        self._check(outputs, targets)
        losses = self._losses(targets)
        if get_dynamic_layer_stack_depth():  # a graph is being made of it
            load_compiler()

            def total(outputs: Tensor) -> Tensor:
                return losses(outputs).sum()

            product: Tensor = vjp(grad(total), outputs)[1](u)[0]
            return product
        return OutputHessian(losses, outputs, self.name).product(u)

    def _losses(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda outputs: self.per_example(outputs, targets)

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        """Try the second derivative once, in float64 where the function allows."""
        if self._is_checked:
            return
        outputs, targets = outputs[:_N_TRIED], targets[:_N_TRIED]
        exact = targets.double() if targets.is_floating_point() else targets
        twin = self.to(dtype=torch.float64)
        try:
            twin.per_example(outputs.double(), exact)
        except RuntimeError:  # it holds numbers of one dtype
            check_second_derivative(self._losses(targets), outputs, self.name)
        else:
            check_second_derivative(twin._losses(exact), outputs.double(), self.name)
        self._is_checked = True

    @torch.no_grad()
    def _find_twin(self, outputs: Tensor, targets: Tensor) -> CallableLoss | None:
        # Somebody's formula takes differences of numbers of order one, as 1 - p: in
        # float32 nothing is left of them where an example is fitted to 1e-8.
        if outputs.dtype == torch.float64:
            return None
        twin = self.to(dtype=torch.float64)
        try:
            exact = twin.per_example(outputs.double(), _in_float64(targets))
        except Exception:  # whatever somebody's function says to other numbers
            return None
        own = self.per_example(outputs, targets)
        off = (exact - own).abs() > tolerance(outputs.dtype, 1) * (1 + own.abs())
        return twin if exact.dtype == torch.float64 and not bool(off.any()) else None

    @torch.no_grad()
    def _compare_means(self, outputs: Tensor, targets: Tensor) -> None:
        """Compare the mean with the function's own, for some targets at one output."""
        if self.whole is None:
            return
        outputs = outputs[:1].repeat_interleave(len(targets), 0)
        with ignored():  # KLDivLoss warns about what it divides by
            own = self._call(self.whole, outputs, targets)
        losses = self.per_example(outputs, targets)
        weights = self.target_weights(targets)
        if weights is not None:
            weights = weights.double()  # a ratio in float32 is no digit of float64
            losses = losses * weights * (len(losses) / weights.sum())
        found = losses.mean()
        if not bool((found - own).abs() > tolerance(outputs.dtype, 1) * own.abs()):
            return  # also where no target counts: then PyTorch returns NaN
        raise ValueError(
            f"The loss {self.name} averages in a way of its own: on some of the data "
            f"it gives {float(own):.6g} with reduction='mean', and its losses with "
            f"reduction='none' have the mean {float(found):.6g}. Pass a function of "
            "(outputs, targets) that returns one loss an example, and what each "
            "example counts as sample_weight."
        )

    def _form(self, y: Tensor, outputs: Tensor) -> Tensor:
        if self.classes is not None:
            return self.classes.check(self.name, y, outputs)
        if self.elementwise:
            targets = elementwise_targets(self.name, y, outputs)
            return unit_targets(self.name, targets) if self.unit_targets else targets
        return y.to(outputs.dtype) if y.is_floating_point() else as_integers(y)

    def _try(self, outputs: Tensor, targets: Tensor) -> tuple[int, ...]:
        """Return the shape of the losses, or say why there are none."""
        shapes = [("n", *t.shape[1:]) for t in (outputs, targets)]
        try:
            losses: Any = self._call(self.function, outputs, targets, are_copies=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"The loss {self.name} is called as loss(outputs, targets), here with "
                f"shapes {shapes[0]} and {shapes[1]}. It raised {type(error).__name__}:"
                f" {first_line(error)}. Pass a function of "
                "(outputs, targets) that returns one loss an example; a weight for "
                "each example is passed as sample_weight."
            ) from error
        if not isinstance(losses, Tensor):
            raise TypeError(
                f"The loss {self.name} must return a Tensor with one number for each "
                f"example. Got {type(losses).__name__}; pass a function that picks it."
            )
        return tuple(losses.shape)


_WRITES = (
    "The loss {name} must leave outputs and targets as they are. Got one that writes "
    "into them, for some examples or at some θ only; the trials when the risk was made "
    "did not show it. y may be changed now, and this risk cannot be used any more. "
    "Begin the loss with targets = targets.clone(), and so for the outputs, or write "
    "nothing into them (clamp in place of clamp_), and make a new risk of y as it was."
)


def _in_float64(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets
