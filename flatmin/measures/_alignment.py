"""How the gradient covariance Σ lies to the Hessian H: the whole table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flatmin._utils.numbers import check_accuracy, check_count, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import HtmlTable, ShortRepr
from flatmin.curvature import (
    HessianOperator,
    covariance_eigenpairs,
)
from flatmin.curvature._covariance import covariance_operator
from flatmin.curvature._preconditioner import check_preconditioner
from flatmin.linalg import Eigenpairs, Estimate, eigsh
from flatmin.measures._deflation import deflated_norm, deflated_trace
from flatmin.measures._estimate import exact, quotient
from flatmin.measures._rounding import CLEAR, GradientMoments, gradient_moments
from flatmin.measures._subspaces import (
    cosines,
    overlap,
    principal_angles,
    projection_residual,
    random_projection_residual,
    subspace_share,
)
from flatmin.measures._trace_product import (
    TraceProduct,
    low_rank_trace_product,
    trace_hessian_covariance,
)
from flatmin.risk import Risk
from flatmin.risk.arguments import check_point

__all__ = ["Alignment", "alignment"]

_NO_NUMBER = exact(torch.tensor(math.nan))


@dataclass(frozen=True, repr=False)
class Alignment(HtmlTable, ShortRepr):
    """What there is to say about H beside Σ at one θ, on D coordinates.

    (λᵢ, uᵢ) are the k largest eigenpairs of H, (γᵢ, vᵢ) those of Σ. With a
    preconditioner PΣP stands for Σ everywhere, and ``noise`` says so.
    """

    n_params: int  # D
    hessian_eigenvalues: Tensor  # (k,) λᵢ, float64
    covariance_eigenvalues: Tensor  # (k,) γᵢ, float64
    hessian_residuals: Tensor  # (k,) ‖(H - λᵢ)uᵢ‖
    covariance_residuals: Tensor  # (k,) ‖(Σ - γᵢ)vᵢ‖
    inner_products: Tensor  # (k, k) |uᵢᵀvⱼ|, NaN where a vector is chance
    cosines: Tensor  # (k,) |uᵢᵀvᵢ|, NaN where a vector is chance
    angles: Tensor  # (k,) principal angles in radians, rising
    residual: Tensor  # () e = k - ‖UᵀV‖²_F
    overlap: Tensor  # () 1 - e/k
    gradient_share: Tensor  # () ‖Uᵀg₀‖² / ‖g₀‖²
    hessian_trace: Estimate  # Tr(H)
    covariance_trace: Estimate  # Tr(Σ)
    hessian_norm: Estimate  # ‖H‖_F
    covariance_norm: Estimate  # ‖Σ‖_F
    trace_product: TraceProduct  # Tr(HΣ), exact or sampled
    low_rank: TraceProduct  # Σ γₗ vₗᵀHvₗ
    first_variance: Tensor  # () u₁ᵀΣu₁
    decay: Tensor  # () d = -log(λ_{k+1}/λ₁) / log D
    n_matvecs: int  # products with H and with Σ
    undefined: dict[str, str]  # why a quantity of the table is NaN
    noise: str = "Σ"  # or "PΣP"; the table's names have it

    def __str__(self) -> str:
        reasons = [f"{name}: {why}" for name, why in self.undefined.items()]
        return "\n".join([str(self.to_frame()), *reasons])

    @property
    def k(self) -> int:
        """Number of eigenpairs."""
        return len(self.hessian_eigenvalues)

    @property
    def random_residual(self) -> float:
        """What two random subspaces have on average, k (1 - k/D)."""
        return random_projection_residual(self.k, self.n_params)

    @property
    def isotropic_trace_product(self) -> Estimate:
        """Tr(H) Tr(Σ) / D, what noise of the same size and no direction meets."""
        size = exact(torch.tensor(float(self.n_params)))
        return quotient([self.hessian_trace, self.covariance_trace], [size])

    @property
    def anisotropy_gain(self) -> Estimate:
        """Tr(HΣ) D / (Tr(H) Tr(Σ)); NaN where Tr(H) is not clear of 0."""
        if "anisotropy gain" in self.undefined:
            return _NO_NUMBER
        return quotient([self.trace_product], [self.isotropic_trace_product])

    @property
    def trace_alignment(self) -> Estimate:
        """Tr(HΣ) / (‖H‖_F ‖Σ‖_F), the cosine between the matrices."""
        return quotient([self.trace_product], [self.hessian_norm, self.covariance_norm])

    @property
    def first_alignment(self) -> Estimate:
        """The 2019 paper's a = u₁ᵀΣu₁ Tr(H) / (λ₁ Tr(Σ)); 1 for Σ ∝ H.

        NaN where λ₁ ≤ 0.
        """
        if "a" in self.undefined:
            return _NO_NUMBER
        first = exact(self.hessian_eigenvalues[0])
        return quotient(
            [exact(self.first_variance), self.hessian_trace],
            [first, self.covariance_trace],
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the single numbers, one a row, with their standard errors.

        Returns
        -------
        pandas.DataFrame
            Indexed by quantity; columns value and stderr, NaN both where it is not
            defined: ``undefined`` tells why.
        """
        rows: dict[str, Any] = {
            "projection residual": exact(self.residual),
            "projection residual, random": self.random_residual,
            "overlap": exact(self.overlap),
            "gradient share": exact(self.gradient_share),
            "Tr(H)": self.hessian_trace,
            "Tr(Σ)": self.covariance_trace,
            "‖H‖_F": self.hessian_norm,
            "‖Σ‖_F": self.covariance_norm,
            "Tr(HΣ)": self.trace_product,
            "Tr(HΣ), low rank": self.low_rank,
            "Tr(HΣ), low rank, bound": self.low_rank.bound,
            "Tr(H)Tr(Σ)/D": self.isotropic_trace_product,
            "anisotropy gain": self.anisotropy_gain,
            "trace alignment": self.trace_alignment,
            "a": self.first_alignment,
            "d": exact(self.decay),
        }
        numbers = [
            (float(number), float(getattr(number, "stderr", 0.0)))
            for number in rows.values()
        ]
        names = [name.replace("Σ", self.noise) for name in rows]
        index = pd.Index(names, name="quantity")
        return pd.DataFrame(numbers, index=index, columns=["value", "stderr"])

    def pairs_to_frame(self) -> pd.DataFrame:
        """Return what belongs to the i-th pairs, one i a row.

        Returns
        -------
        pandas.DataFrame
            Indexed by i from 1; eigenvalues of both matrices, as they are and over
            the Frobenius norm, cosines, principal angles and residuals.
        """
        hessian, covariance = self.hessian_eigenvalues, self.covariance_eigenvalues
        columns = {
            "hessian": hessian,
            "covariance": covariance,
            "hessian_normalised": hessian / self.hessian_norm.value,
            "covariance_normalised": covariance / self.covariance_norm.value,
            "cosine": self.cosines,
            "angle": self.angles,
            "hessian_residual": self.hessian_residuals,
            "covariance_residual": self.covariance_residuals,
        }
        index = pd.RangeIndex(1, self.k + 1, name="i")
        numbers = {name: column.cpu().numpy() for name, column in columns.items()}
        return pd.DataFrame(numbers, index=index)


def alignment(
    risk: Risk,
    theta: Tensor,
    k: int = 20,
    *,
    select: str | list[str] | None = None,
    preconditioner: Tensor | None = None,
    tol: float = 1e-4,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> Alignment:
    """Return how Σ lies to H: cosines, projection residual, traces and their ratios.

    Eigenvalues are ordered algebraically, as in equation 8 of the paper. Traces and
    norms are the sums over the k pairs plus an estimate of the rest.

    What is not defined at this θ is NaN, and ``undefined`` tells why: what compares
    eigenvectors, where fewer than k eigenvalues of H or of Σ are more than rounding and
    the other vectors are chance; the gradient's share where g₀ is rounding; the gain
    where Tr(H) is not clear of 0; a where λ₁ ≤ 0; d where λ₁ ≤ 0, k = D or λ_{k+1} is
    rounding.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (D,)
    k : int, default=20
        Eigenpairs of either matrix, at most min(D, N - 1).
    select : str or list of str, default=None
        Names of parameters or modules: everything is then of their blocks of H and Σ.
    preconditioner : Tensor of shape (D,), default=None
        The diagonal of P, of all parameters: PΣP, the covariance of the noise of
        RMSProp and Adam, then stands in the place of Σ, and the table names it. See
        :func:`~flatmin.curvature.adaptive_preconditioner`.
    tol : float, default=1e-4
        Residual of the eigenpairs, relative to max |λ|.
    rtol : float, default=0.02
        Relative standard error of the traces and norms to reach.
    max_matvecs : int, default=200
        Products for each of them at most.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If k does not fit, a name fits no parameter, θ is not one vector, or ``tol``,
        ``rtol`` or ``max_matvecs`` is too small, or H or Σ is rounding alone, or
        ``preconditioner`` is not D finite and positive numbers.
    FloatingPointError
        If the loss or a derivative is not finite; the message names the parameters.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195, equations 8, 9 and 13; a and d are those of its
    version at ICML 2019, conditions of the proposition on Tr(HΣ).

    Examples
    --------
    Noise along the sharper of two axes:

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> result = alignment(risk, torch.ones(2), 1)
    >>> float(result.trace_product), float(result.anisotropy_gain)
    (4.0, 1.6)
    """
    k = check_count("k", k)
    tol = check_positive("tol", tol)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    check_seed(rng)
    check_point(risk, theta)
    if theta.ndim != 1:
        raise ValueError(
            f"alignment is of one θ, of shape (D,). Got {tuple(theta.shape)}."
        )
    generator = make_generator(rng, risk.device)
    hessian = HessianOperator(risk, theta, select=select)
    covariance = covariance_operator(risk, theta, preconditioner, select)
    size = hessian.shape[-1]
    moments = gradient_moments(risk, theta, hessian.indices)
    if preconditioner is not None:
        moments = _preconditioned(moments, preconditioner, risk, hessian.indices)
    moments.check_noise("The alignment of Σ with H")
    noise: Any = {"select": select, "preconditioner": preconditioner}
    V = covariance_eigenpairs(risk, theta, k, tol=tol, rng=generator, **noise)
    more = eigsh(hessian, min(k + 1, size), tol=tol, rng=generator)
    U = _first(more, k)
    if not bool(more.eigenvalues.any()):
        raise ValueError(
            "The alignment of Σ with H needs a Hessian. Got H = 0 at this θ, so that "
            "it has no directions."
        )
    accuracy: Any = {"rtol": rtol, "max_matvecs": max_matvecs, "rng": generator}
    first = U.eigenvectors[:, 0]
    variance = (first.double() * covariance.matvec(first).double()).sum()
    product = trace_hessian_covariance(risk, theta, **noise, **accuracy)
    low_rank = low_rank_trace_product(hessian, covariance, V, generator)
    hessian_trace = deflated_trace(hessian, U, **accuracy)
    hessian_norm = deflated_norm(hessian, U, **accuracy)
    covariance_norm = deflated_norm(covariance, V, **accuracy)
    eps = CLEAR * torch.finfo(risk.dtype).eps
    rounding = eps * hessian_norm.value
    clear_hessian = U.eigenvalues.abs() > rounding
    clear_noise = V.eigenvalues > eps * V.eigenvalues[0]
    undefined = _of_vectors(clear_hessian, clear_noise, moments)
    undefined |= _of_values(
        more.eigenvalues, k, trace=hessian_trace, rounding=rounding, size=size
    )

    def unless(name: str, compute: Callable[[], Tensor]) -> Tensor:
        return U.eigenvalues.new_tensor(math.nan) if name in undefined else compute()

    vectors = U.eigenvectors, V.eigenvectors
    clear = clear_hessian.unsqueeze(1) & clear_noise
    inner = (U.eigenvectors.mT.double() @ V.eigenvectors.double()).abs()
    return Alignment(
        n_params=size,
        hessian_eigenvalues=U.eigenvalues,
        covariance_eigenvalues=V.eigenvalues,
        hessian_residuals=U.residuals,
        covariance_residuals=V.residuals,
        inner_products=inner.masked_fill(~clear, math.nan),
        cosines=cosines(*vectors).masked_fill(~clear.diagonal(), math.nan),
        angles=principal_angles(*vectors).masked_fill(~clear.all(), math.nan),
        residual=unless("projection residual", lambda: projection_residual(*vectors)),
        overlap=unless("overlap", lambda: overlap(*vectors)),
        gradient_share=unless(
            "gradient share", lambda: subspace_share(moments.mean, U.eigenvectors)
        ),
        hessian_trace=hessian_trace,
        covariance_trace=exact(moments.variances.sum()),
        hessian_norm=hessian_norm,
        covariance_norm=covariance_norm,
        trace_product=product,
        low_rank=low_rank,
        first_variance=variance,
        decay=unless("d", lambda: _decay(more.eigenvalues, k, size)),
        n_matvecs=hessian.n_matvecs + covariance.n_matvecs + product.n_matvecs,
        undefined=undefined,
        noise="Σ" if preconditioner is None else "PΣP",
    )


def _preconditioned(
    moments: GradientMoments,
    preconditioner: Tensor,
    risk: Risk,
    indices: Tensor | None,
) -> GradientMoments:
    """Return the moments with the variances, and what is rounding in them, of Pg."""
    squares = check_preconditioner(preconditioner, risk).double().square()
    if indices is not None:
        squares = squares[indices]
    return replace(
        moments,
        variances=squares * moments.variances,
        noise_rounding=squares * moments.noise_rounding,
    )


def _of_vectors(
    clear_hessian: Tensor, clear_noise: Tensor, moments: GradientMoments
) -> dict[str, str]:
    """Return why a quantity of eigenvectors is not defined, by name."""
    k = len(clear_hessian)
    n_hessian, n_noise = int(clear_hessian.sum()), int(clear_noise.sum())
    undefined: dict[str, str] = {}
    if min(n_hessian, n_noise) < k:
        why = (
            f"of k = {k} eigenvalues {n_hessian} of H and {n_noise} of Σ are more than "
            "rounding, and the other eigenvectors are chance"
        )
        undefined |= dict.fromkeys(("projection residual", "overlap"), why)
    if n_hessian < k or not bool(moments.has_gradient):
        what = "g₀" if n_hessian == k else f"one of k = {k} eigenvalues of H"
        undefined["gradient share"] = f"{what} is rounding"
    return undefined


def _of_values(
    eigenvalues: Tensor, k: int, *, size: int, trace: Estimate, rounding: Tensor
) -> dict[str, str]:
    """Return why a quantity of H's eigenvalues is not defined, by name."""
    undefined: dict[str, str] = {}
    unclear = torch.maximum(2 * trace.stderr, rounding)
    if not bool(trace.value.abs() > unclear):
        undefined["anisotropy gain"] = "Tr(H) is not clear of 0"
    if not bool(eigenvalues[0] > rounding):
        undefined["a"] = undefined["d"] = "λ₁ is not above 0"
    elif k == size:
        undefined["d"] = "there is no λ_{k+1} for k = D"
    elif bool((eigenvalues[k].abs() <= rounding) & (eigenvalues[k] != 0)):
        undefined["d"] = "λ_{k+1} is rounding"
    return undefined


def _first(pairs: Eigenpairs, k: int) -> Eigenpairs:
    return Eigenpairs(
        pairs.eigenvalues[:k],
        pairs.eigenvectors[:, :k],
        pairs.residuals[:k],
        pairs.converged[:k],
        pairs.n_matvecs,
    )


def _decay(eigenvalues: Tensor, k: int, size: int) -> Tensor:
    # An eigenvalue that is not positive lies below λ₁ D^-d for every d.
    ratio = (eigenvalues[k] / eigenvalues[0]).clamp(min=0)
    decay: Tensor = -ratio.log() / math.log(size)
    return decay
