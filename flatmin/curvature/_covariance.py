"""Σ, the per-example gradient covariance, its trace and its diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.numbers import check_count, check_flag
from flatmin.curvature._finite import check_finite, in_dtype
from flatmin.curvature._point import Point, as_point
from flatmin.curvature._preconditioner import check_preconditioner
from flatmin.curvature._risk_operator import RiskOperator
from flatmin.risk import Risk
from flatmin.risk.arguments import as_indices

__all__ = [
    "GradientCovarianceOperator",
    "PreconditionedCovarianceOperator",
    "covariance_diagonal",
    "covariance_operator",
    "covariance_trace",
]

# Parameters from which memory counts more than a second sweep.
_LARGE = 1 << 24
# A difference that is this much smaller than what it is of loses a digit in float32.
_CANCELS = 16


class GradientCovarianceOperator(RiskOperator):
    """Σ = (1/N) Σᵢ (gᵢ - g₀)(gᵢ - g₀)ᵀ at one θ, known by its products.

    Σv is the gradient weighted by gᵢᵀv - g₀ᵀv: no per-example gradient is formed. Where
    the risk has a penalty (λ/2)‖θ‖², which no gᵢ holds, their mean is g₀ - λθ, and it
    takes the place of g₀ here.
    With ``batches`` the gradients are those of minibatches.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    centered : bool, default=True
        False gives the uncentred (1/N) Σ gᵢgᵢᵀ, the empirical Fisher matrix.
    batches : Tensor of shape (b, m), default=None
        Indices of examples: the matrix is then the covariance of the b minibatch
        gradients, with ddof 1 as in appendix C of the paper (uncentred: divisor b).
        Times m it estimates N/(N - 1) Σ for a random partition.
    select : str or list of str, default=None
        See :class:`RiskOperator`.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> GradientCovarianceOperator(risk, torch.zeros(2)).to_dense()
    tensor([[1., 0.],
            [0., 0.]])
    """

    def __init__(
        self,
        risk: Risk,
        theta: Point,
        *,
        centered: bool = True,
        batches: Tensor | None = None,
        select: str | list[str] | None = None,
    ) -> None:
        super().__init__(risk, theta, select=select)
        self.centered = check_flag("centered", centered)
        if batches is not None:
            batches = as_indices(batches, "batches", 2, risk.device)
        if batches is not None and len(batches) < 2:
            raise ValueError(
                "batches must be indices of shape (b, m) with at least two batches. "
                f"Got shape {tuple(batches.shape)}."
            )
        self.batches = batches
        self._point = risk.linearize(self.theta)

    def _product(self, v: Tensor) -> Tensor:
        slopes = self._point.directional_derivatives(v)
        if self.batches is None:
            if self.centered:
                slopes = slopes - slopes.mean(-1, keepdim=True)
            return self.risk.weighted_gradient(self.theta, slopes)
        b, m = self.batches.shape
        means = slopes[..., self.batches].mean(-1)
        if self.centered:
            means = means - means.mean(-1, keepdim=True)
        # Each batch hands its slope on to its examples, which may be in several.
        shares = (means / m).repeat_interleave(m, -1)
        weights = torch.zeros_like(slopes)
        weights.index_add_(-1, self.batches.flatten(), shares)
        divisor = b - 1 if self.centered else b
        return self.risk.weighted_gradient(
            self.theta, weights * (self.risk.n_examples / divisor)
        )

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; one sweep of per-example gradients."""
        return self._dense().to(self.dtype)

    def _dense(self) -> Tensor:
        """Return the matrix in float64."""
        rows = torch.cat(
            [part.double() for part in self.risk.per_example_gradients(self.theta)],
            dim=-2,
        )
        if self.batches is not None:
            rows = rows[..., self.batches, :].mean(-2)
        if self.indices is not None:
            rows = rows[..., self.indices]
        check_finite("A gradient gᵢ", rows, self.risk, self.indices)
        divisor = rows.shape[-2] - int(self.centered and self.batches is not None)
        if self.centered:
            rows = rows - rows.mean(-2, keepdim=True)
        dense: Tensor = rows.mT @ rows / divisor
        return dense

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; one sweep of per-example squares."""
        if self.batches is not None:
            return super().trace()
        if self.centered:
            squares = self.risk.gradient_variances(self.theta)
        else:
            squares = self.risk.squared_gradient_sum(self.theta) / self.risk.n_examples
        if self.indices is not None:
            squares = squares[..., self.indices]
        check_finite("The diagonal of Σ", squares, self.risk, self.indices)
        return in_dtype("Tr(Σ)", squares.sum(-1), self.dtype)


class PreconditionedCovarianceOperator(GradientCovarianceOperator):
    """PΣP/m at one θ: the covariance of the noise in a step of RMSProp or Adam.

    With a diagonal P such a step is -η P g, and the noise of g has the covariance Σ/m:
    that of Pg has P on both sides. Equation 17 of the paper leaves one of them out. It
    holds with P frozen: the next P contains the next gradient already.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    preconditioner : Tensor of shape (D,)
        The diagonal of P, finite and positive, in the order of θ, as from
        :func:`adaptive_preconditioner`.
    batch_size : int, default=1
        m, of minibatches drawn with replacement; 1 gives PΣP.
    select : str or list of str, default=None
        See :class:`RiskOperator`; ``preconditioner`` is of all parameters nevertheless.

    Attributes
    ----------
    preconditioner : Tensor of shape (D,)
        In the risk's dtype.

    Raises
    ------
    ValueError
        If ``preconditioner`` or ``batch_size`` is not as above.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195, equations 14 to 17.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> P = torch.tensor([3.0, 1.0])
    >>> PreconditionedCovarianceOperator(risk, torch.zeros(2), P).to_dense()
    tensor([[9., 0.],
            [0., 0.]])
    """

    def __init__(
        self,
        risk: Risk,
        theta: Point,
        preconditioner: Tensor,
        *,
        batch_size: int = 1,
        select: str | list[str] | None = None,
    ) -> None:
        theta = as_point(risk, theta)
        batch_size = check_count("batch_size", batch_size)
        self.preconditioner = check_preconditioner(preconditioner, risk)
        self.batch_size = batch_size
        super().__init__(risk, theta, select=select)

    def _product(self, v: Tensor) -> Tensor:
        P = self.preconditioner
        return P * super()._product(P * v) / self.batch_size

    def _dense(self) -> Tensor:
        P = self._selected()
        return P.unsqueeze(-1) * super()._dense() * P / self.batch_size

    def _selected(self) -> Tensor:
        """Return the diagonal of P on the coordinates of this operator, in float64."""
        P = self.preconditioner.double()
        return P if self.indices is None else P[self.indices]

    def diagonal(self) -> Tensor:
        """Return the diagonal, by one sweep of per-example squares.

        Returns
        -------
        Tensor of shape (\\*chains, d)
            d is the number of coordinates that are selected, or D.
        """
        return in_dtype("The diagonal of PΣP/m", self._variances(), self.dtype)

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; one sweep of per-example squares."""
        return in_dtype("Tr(PΣP/m)", self._variances().sum(-1), self.dtype)

    def _variances(self) -> Tensor:
        variances = self.risk.gradient_variances(self.theta)
        if self.indices is not None:
            variances = variances[..., self.indices]
        check_finite("The diagonal of Σ", variances, self.risk, self.indices)
        return self._selected().square() * variances / self.batch_size


def covariance_operator(
    risk: Risk,
    theta: Point,
    preconditioner: Tensor | None,
    select: str | list[str] | None,
) -> GradientCovarianceOperator:
    """Return Σ, or PΣP where there is a preconditioner.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    preconditioner : Tensor of shape (D,) or None
    select : str, list of str or None

    Returns
    -------
    GradientCovarianceOperator
    """
    if preconditioner is None:
        return GradientCovarianceOperator(risk, theta, select=select)
    return PreconditionedCovarianceOperator(risk, theta, preconditioner, select=select)


def covariance_trace(risk: Risk, theta: Point, *, check: bool = True) -> Tensor:
    """Return Tr(Σ) = (1/N) Σ‖gᵢ - g₀‖², by one sweep over the examples.

    From 2²⁴ parameters on it takes two sweeps and less memory, unless ‖g₀‖² is nearly
    all of the mean of ‖gᵢ‖².

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    check : bool, default=True
        False hands on what is not finite: a look at it waits for the device, as the
        choice between one sweep and two does in any case.

    Returns
    -------
    Tensor of shape (\\*chains)
        In float64.

    Raises
    ------
    FloatingPointError
        If a variance is not finite and ``check``; the message names the parameters.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import covariance_trace
    >>> covariance_trace(risk, theta)
    tensor(15., dtype=torch.float64)
    """
    theta = as_point(risk, theta)
    check_flag("check", check)
    is_large = theta.shape[-1] >= _LARGE and theta.ndim == 1
    if is_large and (trace := _trace_by_norms(risk, theta)) is not None:
        return trace
    variances = risk.gradient_variances(theta)
    if check:
        check_finite("The diagonal of Σ", variances, risk)
    return variances.sum(-1)


def _trace_by_norms(risk: Risk, theta: Tensor) -> Tensor | None:
    """Return (1/N) Σ‖gᵢ‖² - ‖g₀‖², or None where it has few digits."""
    # Two sweeps, but no vector of variances, which takes gigabytes, and no rows of an
    # embedding, whose norms come from pairs of positions.
    square = risk.squared_norms(theta).mean()
    mean = risk.weighted_gradient(theta, theta.new_ones(risk.n_examples))
    trace = square - mean.norm(dtype=torch.float64).square()
    has_digits = trace.isfinite() & (trace >= square / _CANCELS)
    return trace if bool(has_digits) else None


def covariance_diagonal(risk: Risk, theta: Point) -> Tensor:
    """Return diag(Σ) = (1/N) Σ (gᵢ - g₀)², by one sweep over the examples.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)

    Returns
    -------
    Tensor of shape (\\*chains, D)
        In float64.

    Raises
    ------
    FloatingPointError
        If a variance is not finite; the message names the parameters.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import covariance_diagonal
    >>> covariance_diagonal(risk, theta)  # (9 + 9 + 1 + 1)/4 and (16 + 16 + 4 + 4)/4
    tensor([ 5., 10.], dtype=torch.float64)
    """
    theta = as_point(risk, theta)
    return check_finite("The diagonal of Σ", risk.gradient_variances(theta), risk)
