"""Products with H, G and J of one chunk by ways that any module allows.

Each way is tried on a few examples before its first number is believed: J v against the
pullback Jᵀu, which is a plain backward pass, and H v against differences of the
gradient in float64. G v and gᵢᵀv take J v and first derivatives of the network only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from flatmin._utils.quiet import ignored
from flatmin.risk.autodiff.differences import (
    STEPS,
    central_difference,
    difference_step,
    disagreement,
)
from flatmin.risk.autodiff.held_constants import HeldConstants
from flatmin.risk.autodiff.isolation import isolated
from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import (
    ExampleScalars,
    example_losses,
    inner_products,
    losses_and_gradient,
)
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.losses.callable_loss import CallableLoss
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.finite_difference import FiniteDifference
from flatmin.risk.trials import (
    Choice,
    NotTaken,
    asymmetry,
    explain,
    random_like,
    tolerance,
)

__all__ = ["ProductWays", "ReferenceProducts", "losses_in"]

_ROUNDINGS = 10  # that differences of slopes may be off by
# Numbers an output up to which J v is taken from rows, one sweep a number.
_MOST_ROWS = 64


class ProductWays:
    """How one risk computes J v and H v where no trace serves.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    sums : ExampleSums
        Gives the rows.
    examples : Chunk
        The few to try on.
    finite_difference : bool
        Whether H v is a difference of gradients.

    Attributes
    ----------
    jacobian : Choice
        Of J v: forward mode, rows, or the pullback differentiated.
    hessian : Choice
        Of H v: double backward, or forward mode over backward.
    difference_error : float
        The largest relative difference between two steps of a finite difference.
    """

    def __init__(
        self,
        model: FlatModel,
        loss: ExampleLoss,
        sums: ExampleSums,
        examples: Chunk,
        *,
        finite_difference: bool,
    ) -> None:
        self.model = model
        self.loss = loss
        self.sums = sums
        self.examples = examples
        self.finite_difference = finite_difference
        self.jacobian = Choice()
        self.hessian = Choice()
        self.difference_error = 0.0

    def told(self, quantity: str) -> str:
        """Return what is to be known of a product besides that no trace serves."""
        if quantity == "hvp" and self.finite_difference:
            return f"; two steps agree to {self.difference_error:.0e}"
        if quantity == "vjp":
            return ""
        choice = self.hessian if quantity == "hvp" else self.jacobian
        if choice.taken is None or not choice.reasons:
            return ""
        return f"; by {choice.taken}, since {_listed(choice)}"

    def jvp(self, point: DoubleBackward, v: Tensor) -> Tensor:
        """Return J v of a chunk by the first way that is right, and finite there.

        Parameters
        ----------
        point : DoubleBackward
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (n, \\*output_shape)

        Raises
        ------
        ValueError
            If there is none.
        FloatingPointError
            If θ, or outputs and losses there, are not finite, and no way was found
            before.
        OutOfMemoryError
            As it comes.
        """
        choice = self.jacobian
        if choice.taken is None:
            _check_finite("θ", point.theta)
        while True:
            name = choice.taken or choice.settle(
                {way: partial(self._off, way, point.theta) for way in _JACOBIANS},
                tolerance(point.theta.dtype, 1),
            )
            if name is None:
                self._check_outputs(choice, point.theta)
                raise ValueError(
                    "J v needs the derivative of the outputs along a direction. No way "
                    f"to it is right for this module: {_listed(choice)}."
                )
            try:
                product = _JACOBIANS[name](self.sums, point, v)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                choice.give_up(name, explain(error))
                continue
            if name == "pullback" or bool(product.isfinite().all()):
                return product
            choice.give_up(name, "it is not finite on some examples")

    def hvp(self, point: DoubleBackward, v: Tensor) -> Tensor:
        """Return Σ ∇²ℓ̃ᵢ v of a chunk.

        Parameters
        ----------
        point : DoubleBackward
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        ValueError
            If no way is right.
        FloatingPointError
            If θ, or outputs and losses there, are not finite, and no way was found
            before.
        """
        choice = self.hessian
        if choice.taken is None:
            _check_finite("θ", point.theta)
        name = choice.taken or choice.settle(
            {way: partial(self._hessian_off, way, point.theta) for way in _HESSIANS},
            tolerance(point.theta.dtype, 2),
        )
        if name is None:
            self._check_outputs(choice, point.theta)
            raise ValueError(
                "H v needs the second derivatives of network and loss, and PyTorch's "
                f"are missing or wrong here: {_listed(choice)}. Pass "
                "hvp='finite_difference', or take what needs first derivatives only, "
                "such as the Gauss-Newton matrix and Σ."
            )
        return _HESSIANS[name](point, v)

    @torch.no_grad()
    def _check_outputs(self, choice: Choice, theta: Tensor) -> None:
        """Raise, and forget what was tried, where no way could be right."""
        self.model.bind(theta)
        few = self.examples
        outputs = self.model.evaluate(few.X)
        try:
            _check_finite("The outputs at θ", outputs)
            _check_finite("The losses at θ", self.loss.per_example(outputs, few.y))
        except FloatingPointError:
            choice.reasons.clear()
            raise

    def _sizes(self) -> list[Chunk]:
        """Return the examples to try on: together, and one alone."""
        chunk = self.examples
        if len(chunk.X) == 1:
            return [chunk]
        one = Chunk(chunk.X[-1:], chunk.y[-1:], None, slice(0, 1))
        return [chunk, one]

    def _off(self, name: str, theta: Tensor) -> float:
        """Return how far uᵀ(J v) is from vᵀ(Jᵀu), at worst."""
        found = []
        for chunk in self._sizes():
            point = DoubleBackward(self.model, self.loss, theta, chunk)
            u, v = random_like(point.outputs, 0), random_like(theta, 1)
            along = _JACOBIANS[name](self.sums, point, v).double() * u.double()
            back = point.vjp(u).double() @ v.double()
            off, size = float((along.sum() - back).abs()), float(along.norm())
            found.append(off / size if size else off)
        return max(found, key=lambda off: (off != off, off))  # NaN is the worst

    def _hessian_off(self, name: str, theta: Tensor) -> float:
        """Return how far H v is from symmetric; raise where it is no derivative."""
        found = []
        for chunk in self._sizes():
            point = self._in_float64(theta, chunk)
            try:
                found.append(_second_off(name, point))
            except NotTaken:
                if not _is_fitted(point):
                    raise
                # Differences are rounding: the network's second derivative shows in
                # projections of its outputs.
                chunk = point.chunk
                point = DoubleBackward(point.model, _PROJECTION, point.theta, chunk)
                found.append(_second_off(name, point))
        return max(found)

    def _in_float64(self, theta: Tensor, chunk: Chunk) -> DoubleBackward:
        """Return a point in float64, or in θ's own dtype for modules of one dtype."""
        self.model.bind(theta)
        loss, few = self.loss.to(dtype=torch.float64), chunk.double()
        point = DoubleBackward(self.model.to(torch.float64), loss, theta.double(), few)
        try:
            ones = point.theta.new_ones(len(few.X))
            losses_and_gradient(point.model, loss, few, ones)
        except RuntimeError:
            return DoubleBackward(self.model, self.loss, theta, chunk)
        return point


class ReferenceProducts:
    """The part of one chunk in the products at one θ.

    Parameters
    ----------
    ways : ProductWays
    theta : Tensor of shape (D,)
    chunk : Chunk
    """

    def __init__(self, ways: ProductWays, theta: Tensor, chunk: Chunk) -> None:
        self.ways = ways
        self.chunk = chunk
        self._point = DoubleBackward(ways.model, ways.loss, theta, chunk)
        self.differences: FiniteDifference | None = None
        if ways.finite_difference:
            self.differences = FiniteDifference(ways.model, ways.loss, theta, chunk)

    def hvp(self, v: Tensor) -> Tensor:
        """Return Σ ∇²ℓ̃ᵢ v over the chunk, shape (D,)."""
        if self.differences is not None:
            product = self.differences.hvp(v)
            error = max(self.differences.error, self.ways.difference_error)
            self.ways.difference_error = error
            return product
        return self.ways.hvp(self._point, v)

    def ggn(self, v: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ Hᵢ Jᵢ v over the chunk, shape (D,)."""
        Jv = self.jvp(v)
        HJv = self.ways.loss.hessian_product(self._point.outputs, self.chunk.y, Jv)
        return self.vjp(self.chunk.weigh(HJv))

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, shape (n, \\*output_shape)."""
        return self.ways.jvp(self._point, v)

    def vjp(self, u: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ uᵢ over the chunk, shape (D,)."""
        return self._point.vjp(u)

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀ v, shape (n,)."""
        leaf = self._point.outputs.requires_grad_()
        with torch.enable_grad():
            total = self.ways.loss.per_example(leaf, self.chunk.y).sum()
        (slopes,) = torch.autograd.grad(total, leaf)
        return self.chunk.weigh(inner_products(slopes, self.jvp(v)))


def _check_finite(name: str, tensor: Tensor) -> None:
    # No way is right where it is not, and what a trial finds is remembered.
    if not bool(tensor.isfinite().all()):
        raise FloatingPointError(f"{name} must be finite. Got NaN or infinity in it.")


def _forward(
    point: DoubleBackward, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return the derivative of a function of θ along v, by forward mode."""

    def along(v: Tensor) -> Tensor:
        point.model.bind(point.theta)
        # Of PyTorch's own use of its old parts, when forward mode first loads.
        with twice_differentiable(point.model.module), ignored(DeprecationWarning):
            product: Tensor = isolated(lambda: jvp(function, (point.theta,), (v,)))[1]
        # Parameters that are reached past θ leave a graph.
        return product.detach()

    return along


def _jvp_forward(_sums: ExampleSums, point: DoubleBackward, v: Tensor) -> Tensor:
    X = point.chunk.X
    return _forward(point, lambda theta: point.model.functional(theta, X))(v)


def _jvp_by_rows(sums: ExampleSums, point: DoubleBackward, v: Tensor) -> Tensor:
    shape = point.outputs.shape
    if shape[1:].numel() > _MOST_ROWS:
        raise ValueError(f"an output of more than {_MOST_ROWS} numbers")
    point.model.bind(point.theta)
    X, step = point.chunk.X, sums.row_chunk_size
    columns = []
    for i in range(shape[1:].numel()):
        number = partial(_ith_number, i)
        parts = [
            sums.rows(ExampleScalars(X[start : start + step], (), number)) @ v
            for start in range(0, len(X), step)
        ]
        columns.append(torch.cat(parts))
    return torch.stack(columns, 1).view(shape)


def _ith_number(i: int, outputs: Tensor) -> Tensor:
    return outputs.flatten(1)[:, i]


def _jvp_by_pullback(_sums: ExampleSums, point: DoubleBackward, v: Tensor) -> Tensor:
    return point.jvp(v)


def _hvp_forward(point: DoubleBackward, v: Tensor) -> Tensor:
    chunk = point.chunk

    def total(theta: Tensor) -> Tensor:
        losses = point.loss.per_example(point.model.functional(theta, chunk.X), chunk.y)
        return chunk.weigh(losses).sum()

    return _forward(point, grad(total))(v)


_JACOBIANS: dict[str, Callable[[ExampleSums, DoubleBackward, Tensor], Tensor]] = {
    "forward mode": _jvp_forward,
    "rows": _jvp_by_rows,
    "pullback": _jvp_by_pullback,
}
_HESSIANS: dict[str, Callable[[DoubleBackward, Tensor], Tensor]] = {
    "double backward": DoubleBackward.hvp,
    "forward over backward": _hvp_forward,
}


def _second_off(name: str, point: DoubleBackward) -> float:
    """Return how far H v is from symmetric; raise where it is no derivative."""
    a, b = (random_like(point.theta, seed) for seed in (1, 2))
    Ha, Hb = (_HESSIANS[name](point, v) for v in (a, b))
    off = _gradient_off(point, Ha, a)
    if off:
        raise NotTaken(f"it differs by {off:.1e} from differences of the gradient")
    off = asymmetry(a, Ha, b, Hb)
    if off > tolerance(point.theta.dtype, 2):
        raise NotTaken(f"aᵀHb and bᵀHa differ by {off:.1e}")
    return off


def _is_fitted(point: DoubleBackward) -> bool:
    """Say whether differences of the gradient are of its rounding.

    Slopes in the outputs are differences of numbers of order one, as p - y. At a loss
    of 1e-13 they are a few roundings of these, and do not change at all from step to
    step. Nor do those of a prediction that is sure and wrong, which are one.

    Returns
    -------
    bool
    """
    slope = _gradient(point, nullcontext())
    gradient, eps = slope(point.theta), torch.finfo(point.theta.dtype).eps
    order_one = point.vjp(random_like(point.outputs, 0))
    if bool(gradient.norm() <= eps**0.5 * order_one.norm()):
        return True
    v, step = random_like(point.theta, 1), STEPS[point.theta.dtype][0]
    change = central_difference(slope, point.theta, v, step).norm()
    h = difference_step(point.theta, v, step)
    return bool(change * h <= _ROUNDINGS * eps * gradient.norm())


def _projections(outputs: Tensor, _targets: Tensor) -> Tensor:
    return inner_products(outputs, random_like(outputs, 0))


_PROJECTION = CallableLoss(_projections, name="projections")


def _gradient_off(point: DoubleBackward, product: Tensor, v: Tensor) -> float:
    """Return how far H v is from differences of the gradient, see ``disagreement``."""
    sizes = point.model.layout.sizes
    off = disagreement(product, _gradient(point, nullcontext()), point.theta, v, sizes)
    if not off:
        return off
    constants = HeldConstants()
    gradient = _gradient(point, constants)
    gradient(point.theta)
    if constants.n_held:
        off = disagreement(product, gradient, point.theta, v, sizes)
    return off


def _gradient(
    point: DoubleBackward, context: AbstractContextManager[Any]
) -> Callable[[Tensor], Tensor]:
    """Return θ to Σ ∇ℓ̃ᵢ, with the network run in a context."""
    losses_at = losses_in(point, context)

    def gradient(theta: Tensor) -> Tensor:
        losses = losses_at(theta)
        return point.model.gradient(losses, torch.ones_like(losses))

    return gradient


def losses_in(
    point: DoubleBackward, context: AbstractContextManager[Any]
) -> Callable[[Tensor], Tensor]:
    """Return θ to the ℓ̃ᵢ of a chunk, with the network run in a context.

    Parameters
    ----------
    point : DoubleBackward
    context : context manager

    Returns
    -------
    callable
    """

    @torch.enable_grad()
    def losses(theta: Tensor) -> Tensor:
        point.model.bind(theta)
        with context:
            return example_losses(point.model, point.loss, point.chunk)

    return losses


def _listed(choice: Choice) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in choice.reasons.items())
