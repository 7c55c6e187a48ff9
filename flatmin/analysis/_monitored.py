"""What a monitor measures at a point of a training, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.random import make_generator
from flatmin.analysis._carried import reciprocal, root
from flatmin.curvature import hessian_eigenpairs, hessian_trace
from flatmin.linalg import Eigenpairs, Estimate
from flatmin.measures import (
    SHARPNESS_MEASURES,
    alignment,
    curvature_noise_scale,
)
from flatmin.measures._rounding import GradientMoments, gradient_moments
from flatmin.risk import EmpiricalRisk

__all__ = [
    "FOLLOWING",
    "OF_ALL_ONLY",
    "QUANTITIES",
    "MeasuredPoint",
    "Quantity",
    "find_quantity",
]


@dataclass
class MeasuredPoint:
    """Some of the examples at one θ, and what several quantities need there.

    Parameters
    ----------
    risk : EmpiricalRisk
        Of n of the examples.
    theta : Tensor of shape (D,)
    n_examples : int
        N, from which the n were drawn without replacement.
    seed : int
        Of all that is drawn.
    lr : float or None
        η, where it is known.
    v0 : Tensor of shape (D,) or None
        Where Lanczos starts.
    tol : float
        Of eigenpairs.
    rtol : float
        Of traces.
    max_matvecs : int
        Of traces.
    """

    risk: EmpiricalRisk
    theta: Tensor
    n_examples: int
    seed: int
    lr: float | None
    v0: Tensor | None
    tol: float
    rtol: float
    max_matvecs: int

    @cached_property
    def moments(self) -> GradientMoments:
        """L, g₀ and diag(Σ) of these examples."""
        return gradient_moments(self.risk, self.theta)

    @cached_property
    def top(self) -> Eigenpairs:
        """The largest eigenvalue of H and its eigenvector."""
        # A start from the eigenvector of the call before takes a quarter fewer
        # products: 11 in place of 14.5 for an MLP on digits, 10 or 100 steps of SGD,
        # gradient descent or Adam later, at a tolerance of 1e-2.
        return hessian_eigenpairs(
            self.risk, self.theta, 1, tol=self.tol, v0=self.v0, rng=self.rng()
        )

    @property
    def accuracy(self) -> dict[str, Any]:
        """How traces are estimated."""
        return {
            "rtol": self.rtol,
            "max_matvecs": self.max_matvecs,
            "rng": self.rng(),
        }

    def rng(self) -> torch.Generator:
        """Return a generator: the same numbers at every call."""
        return make_generator(self.seed, self.risk.device)


Quantity = Callable[[MeasuredPoint], Any]


def _loss(point: MeasuredPoint) -> Tensor:
    return point.risk.value(point.theta)


def _max_eigenvalue(point: MeasuredPoint) -> float:
    # The value of a solver that has not converged is no eigenvalue.
    top = point.top
    return float(top.eigenvalues[0]) if bool(top.converged.all()) else math.nan


def _edge_of_stability(point: MeasuredPoint) -> float:
    if point.lr is None:
        raise ValueError(
            "edge_of_stability is λ₁η/2. Got no η; call monitor(module, step, lr=lr)."
        )
    return _max_eigenvalue(point) * point.lr / 2


def _covariance_trace(point: MeasuredPoint) -> float:
    """Return the unbiased estimate of Tr(Σ) over all N examples, of divisor N."""
    # On average the covariance of a subset, with divisor n - 1, is that of all examples
    # with divisor N - 1.
    n, n_all = point.risk.n_examples, point.n_examples
    trace = float(point.moments.variances.sum())
    return trace if n == n_all else trace * n / (n - 1) * (n_all - 1) / n_all


def _squared_gradient_norm(point: MeasuredPoint) -> float:
    """Return the unbiased estimate of ‖g₀‖² of all N examples."""
    # The gradient of n of them has the mean squared norm ‖g₀‖² + (1/n - 1/N) Tr(S), S
    # the covariance of divisor N - 1. Late in a training that is nearly all of it.
    n, n_all = point.risk.n_examples, point.n_examples
    squared = float(point.moments.mean.square().sum())
    if n == n_all:
        return squared
    trace = float(point.moments.variances.sum()) * n / (n - 1)
    return squared - (1 / n - 1 / n_all) * trace


def _inverse_noise_scale(point: MeasuredPoint) -> float:
    """Return ‖g₀‖² / Tr(Σ), whose sign is that of the estimate of ‖g₀‖²."""
    squared, trace = _squared_gradient_norm(point), _covariance_trace(point)
    if not bool(point.moments.has_gradient):
        squared = min(squared, 0.0)
    if not trace:
        return math.inf if squared > 0 else 0.0
    return squared / trace


def _hessian_trace(point: MeasuredPoint) -> Estimate:
    return hessian_trace(point.risk, point.theta, **point.accuracy)


def _curvature_noise_scale(point: MeasuredPoint) -> Estimate:
    return curvature_noise_scale(point.risk, point.theta, **point.accuracy)


def _alignment(point: MeasuredPoint) -> Mapping[str, Any]:
    k = min(5, point.risk.n_params, point.risk.n_examples - 1)
    found = alignment(point.risk, point.theta, k, tol=point.tol, **point.accuracy)
    # Vectors of a few examples differ from those of all by no error that is known.
    whole = point.risk.n_examples == point.n_examples
    return {
        "overlap": found.overlap if whole else math.nan,
        "anisotropy_gain": found.anisotropy_gain,
        "first_alignment": found.first_alignment if whole else math.nan,
    }


def _sharpness(measure: Callable[..., Estimate], point: MeasuredPoint) -> Estimate:
    # A max_matvecs without rtol beside it bounds something else than a trace.
    takes = inspect.signature(measure).parameters
    given = {"tol": point.tol, "rng": point.rng()}
    given |= point.accuracy if "rtol" in takes else {}
    options = {name: value for name, value in given.items() if name in takes}
    return measure(point.risk, point.theta, **options)


#: What a monitor measures, by name; every sharpness measure besides.
QUANTITIES: dict[str, Quantity] = {
    "loss": _loss,
    "gradient_norm": _squared_gradient_norm,
    "max_eigenvalue": _max_eigenvalue,
    "edge_of_stability": _edge_of_stability,
    "hessian_trace": _hessian_trace,
    "covariance_trace": _covariance_trace,
    "simple_noise_scale": _inverse_noise_scale,
    "curvature_noise_scale": _curvature_noise_scale,
    "alignment": _alignment,
}

# What is told of a quantity, where that is a function of the number that is measured.
# The root of an estimate without bias has one, and 0 cuts it off: both come last.
FOLLOWING: dict[str | None, Callable[[float], float]] = {
    "gradient_norm": root,
    "simple_noise_scale": reciprocal,
}

# Of a subset their bias is none of 1/n: g₀, along which they go or by which they
# divide, is there nothing but noise near a minimum, and a part of the subset may have
# fewer examples than a batch.
OF_ALL_ONLY = ("curvature_noise_scale", "sam", "asam", "batch")


def find_quantity(name: str) -> Quantity:
    """Return the quantity of a name, of this table or of the sharpness measures."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    return partial(_sharpness, SHARPNESS_MEASURES[name])
