"""What is said about Σ beside H: single numbers, pairs, and what is not defined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flatmin._utils.results import HtmlTable, ShortRepr
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact, quotient
from flatmin.measures._subspaces import random_projection_residual
from flatmin.measures._trace_product import TraceProduct

__all__ = ["Alignment"]

_NO_NUMBER = exact(torch.tensor(math.nan))


@dataclass(frozen=True, repr=False)
class Alignment(HtmlTable, ShortRepr):
    """What there is to say about H beside Σ at one θ, on D coordinates.

    (λᵢ, uᵢ) are the k largest eigenpairs of H, (γᵢ, vᵢ) those of Σ. With a
    preconditioner PΣP stands for Σ everywhere, and ``noise`` says so.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import alignment
    >>> found = alignment(risk, theta, 1)
    >>> float(found.trace_product), float(found.anisotropy_gain)  # 30 · 2/(5 · 15)
    (30.0, 0.8)
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
        size = exact(torch.tensor(self.n_params, dtype=torch.float64))
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
