"""The ways to J v and H v of a chunk, and which of them is right for a module.

Each way is tried on a few examples before its first number is believed: J v against the
pullback Jᵀu, which is one backward pass, and H v against differences of the gradient in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.example_sums.trial_points import trial_points
from flatmin.risk.failures import NotTaken, explain
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.gradient_trial import GradientTrial
from flatmin.risk.products.hessian_trial import PROJECTION, hessian_off, is_fitted
from flatmin.risk.products.ways import HESSIANS, JACOBIANS
from flatmin.risk.rounding import leave_out_casts
from flatmin.risk.trials import Choice, difference, random_like, tolerance, worst

__all__ = ["ProductWays"]

# Where no other way is finite either, the number is not.
_NOT_FINITE = "it is not finite on some examples"


class ProductWays:
    """How one risk computes J v and H v where no graph serves.

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
        Of J v: the pullback differentiated, forward mode, or rows.
    hessian : Choice
        Of H v: double backward, or forward mode over backward.
    difference_error : float
        The largest relative difference between two steps of a finite difference.
    cast_error : float or None
        By how much the module's casts changed H v on the examples of the trial,
        relative to it; None where none passed.
    gradient : GradientTrial
        Whether the gradient is the derivative of L.
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
        self.cast_error: float | None = None
        self.gradient = GradientTrial(model, loss, examples)

    def of(self, model: FlatModel) -> ProductWays:
        """Return those of another model with the same outputs, such as a block."""
        sums = ExampleSums(
            model, self.sums.row_chunk_size, self.sums.examples, self.sums.n_examples
        )
        differs = self.finite_difference
        ways = ProductWays(
            model, self.loss, sums, self.examples, finite_difference=differs
        )
        ways.gradient.error = self.gradient.error
        return ways

    def describe(self, quantity: str) -> str:
        """Return what is to be known of a product besides that no graph serves."""
        if quantity == "hvp" and self.finite_difference:
            return f"; two steps agree to {self.difference_error:.0e}"
        if quantity == "vjp":
            return ""
        choice = self.hessian if quantity == "hvp" else self.jacobian
        if choice.taken is None or not choice.reasons:
            return ""
        return f"; by {choice.taken}, since {_listed(choice)}"

    def describe_casts(self) -> str:
        """Return by how much casts change H v, where that is known."""
        if self.cast_error is None:
            return ""
        return f", which changed H v by {self.cast_error:.0e} at the θ of the trial"

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
            name = choice.taken or self._settle(
                choice, JACOBIANS, self._off, point.theta, order=1
            )
            if name is None:
                if choice.reasons.get("pullback") == _NOT_FINITE:
                    return JACOBIANS["pullback"](self.sums, point, v)
                self._check_outputs(choice, point.theta)
                reasons = _listed(choice)
                raise ValueError(
                    "J v needs the derivative of the outputs along a direction. No way "
                    f"to it is right for this module: {reasons}.{_elsewhere(choice)}"
                )
            try:
                product = JACOBIANS[name](self.sums, point, v)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                choice.give_up(name, explain(error))
                continue
            if bool(product.isfinite().all()):
                return product
            choice.give_up(name, _NOT_FINITE)

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
        choice, name = self.hessian, self.settle_hessian(point.theta)
        if name is None:
            self._check_outputs(choice, point.theta)
            reasons = _listed(choice)
            raise ValueError(
                "H v needs the second derivatives of network and loss, and PyTorch's "
                f"are missing or wrong here: {reasons}. Pass "
                "hvp='finite_difference', or take what needs first derivatives only, "
                f"such as the Gauss-Newton matrix and Σ.{_elsewhere(choice)}"
            )
        return HESSIANS[name](point, v)

    def settle_hessian(self, theta: Tensor) -> str | None:
        """Return the way to H v, after a trial at the first call.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        str or None
            None if no way is right.

        Raises
        ------
        FloatingPointError
            If θ is not finite, and no way was found before.
        ValueError
            If the gradient is not the derivative of L.
        """
        choice = self.hessian
        if choice.taken is None:
            _check_finite("θ", theta)
        self.gradient.check(theta)
        return choice.taken or self._settle(
            choice, HESSIANS, self._hessian_off, theta, order=2
        )

    def trial_points(self, theta: Tensor) -> list[Tensor]:
        """Return where a product is tried: at θ, and where θ hides nothing.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        list of Tensor of shape (D,)
        """
        self.model.bind(theta)
        return trial_points(self.model, self.sums.examples())

    def _settle(
        self,
        choice: Choice,
        ways: Iterable[str],
        off: Callable[[str, Tensor], float],
        theta: Tensor,
        *,
        order: int,
    ) -> str | None:
        points = self.trial_points(theta)

        def worst_off(way: str) -> float:
            return worst(off(way, point) for point in points)

        found = choice.settle(
            {way: partial(worst_off, way) for way in ways},
            tolerance(self.model.precision, order),
        )
        self.model.bind(theta)
        return found

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
        if len(chunk.X) == 1 or self.model.normalises_batch:
            return [chunk]
        one = Chunk(chunk.X[-1:], chunk.y[-1:], None, slice(0, 1))
        return [chunk, one]

    def _off(self, name: str, theta: Tensor) -> float:
        """Return how far uᵀ(J v) is from vᵀ(Jᵀu), at worst."""
        found = []
        for chunk in self._sizes():
            point = DoubleBackward(self.model, self.loss, theta, chunk)
            u, v = random_like(point.outputs, 0), random_like(theta, 1)
            along = JACOBIANS[name](self.sums, point, v).double() * u.double()
            back = point.vjp(u).double() @ v.double()
            off, size = float((along.sum() - back).abs()), float(along.norm())
            found.append(off / size if size else off)
        return worst(found)

    def _hessian_off(self, name: str, theta: Tensor) -> float:
        """Return how far H v is from symmetric; raise where it is no derivative."""
        found = []
        model, loss, dtype = self._in_float64(theta)
        for chunk in self._sizes():
            few = chunk.double() if dtype == torch.float64 else chunk
            point = DoubleBackward(model, loss, theta, few)
            try:
                found.append(hessian_off(name, point))
                self._check_rounding(name, theta, chunk, point)
            except NotTaken:
                if not is_fitted(point):
                    raise
                # Differences are rounding: the network's second derivative shows in
                # projections of its outputs.
                point = DoubleBackward(model, PROJECTION, point.theta, few)
                found.append(hessian_off(name, point))
        return max(found)

    def _check_rounding(
        self, name: str, theta: Tensor, chunk: Chunk, point: DoubleBackward
    ) -> None:
        """Raise where the module's casts leave too few digits of H v."""
        lowest = self.model.lowest_dtype
        if lowest == theta.dtype:
            return
        own = DoubleBackward(self.model, self.loss, theta, chunk)
        v = random_like(theta, 1)
        off = difference(HESSIANS[name](own, v), HESSIANS[name](point, v.double()))
        if not off <= tolerance(self.model.precision, 2):
            inside = str(lowest).removeprefix("torch.")
            raise ValueError(f"casts to {inside} in the module change it by {off:.1e}")
        self.cast_error = max(off, self.cast_error or 0.0)

    def _in_float64(self, theta: Tensor) -> tuple[FlatModel, ExampleLoss, torch.dtype]:
        """Return model and loss in float64, or as they are for modules of one dtype."""
        self.model.bind(theta)
        model, loss = self.model.to(torch.float64), self.loss.to(dtype=torch.float64)
        if leave_out_casts(model, loss, self.examples.double()):
            return model, loss, torch.float64
        return self.model, self.loss, theta.dtype


def _check_finite(name: str, tensor: Tensor) -> None:
    # No way is right where it is not, and what a trial finds is remembered.
    if not bool(tensor.isfinite().all()):
        raise FloatingPointError(f"{name} must be finite. Got NaN or infinity in it.")


def _elsewhere(choice: Choice) -> str:
    """Forget what a θ without a derivative told, and say the way out."""
    if choice.forget_not_finite():
        return " Derivatives at this θ are not finite; another θ is tried anew."
    return ""


def _listed(choice: Choice) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in choice.reasons.items())
