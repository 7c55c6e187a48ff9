"""Is the noise of a minibatch Gaussian? Equation 2 of the paper assumes it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin._utils.numbers import check_count
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import HtmlTable, ShortRepr
from flatmin.curvature import covariance_eigenpairs
from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_one_point
from flatmin.measures._rounding import CLEAR, nearby
from flatmin.risk import Risk

__all__ = ["Gaussianity", "minibatch_gaussianity"]


@dataclass(frozen=True, repr=False)
class Gaussianity(HtmlTable, ShortRepr):
    """How far the noise of minibatches is from Gaussian, direction by direction.

    ``float`` gives the largest of the distances.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import minibatch_gaussianity
    >>> found = minibatch_gaussianity(risk, theta, 1, batch_size=2, rng=0)
    >>> found.excess_kurtosis.shape
    torch.Size([1])
    """

    skewness: Tensor  # (k,) of εᵀv, exact; 0 for a Gaussian
    excess_kurtosis: Tensor  # (k,) of εᵀv, exact; 0 for a Gaussian
    distance: Tensor  # (k,) sup |F - Φ|, Kolmogorov and Smirnov, from drawn batches
    p_values: Tensor  # (k,) of that distance, if the noise were Gaussian
    batch_size: int  # m
    n_batches: int  # drawn

    @property
    def p_value(self) -> float:
        """Of all directions together: k times the smallest (Bonferroni), at most 1."""
        return min(1.0, len(self.p_values) * float(self.p_values.min()))

    def __float__(self) -> float:
        return float(self.distance.max())

    def to_frame(self) -> pd.DataFrame:
        """Return one row a direction.

        Returns
        -------
        pandas.DataFrame
            Indexed by direction from 1.
        """
        columns = {
            "skewness": self.skewness,
            "excess_kurtosis": self.excess_kurtosis,
            "distance": self.distance,
            "p_value": self.p_values,
        }
        numbers = {name: column.cpu().numpy() for name, column in columns.items()}
        index = pd.RangeIndex(1, len(self.distance) + 1, name="direction")
        return pd.DataFrame(numbers, index=index)


def minibatch_gaussianity(
    risk: Risk,
    theta: Point,
    k: int = 5,
    *,
    batch_size: int,
    directions: Tensor | None = None,
    n_batches: int = 1000,
    rng: torch.Generator | int | None = 0,
) -> Gaussianity:
    """Return how far minibatch noise is from a Gaussian along some directions.

    Along v the noise of m examples drawn with replacement is the mean of m of the N
    numbers gᵢᵀv - g₀ᵀv. So one sweep a direction gives everything: skewness and excess
    kurtosis of the noise are those of the N numbers over √m and over m, exactly, and
    batches are drawn from the numbers alone. Their distribution is compared with the
    Gaussian of mean 0 and variance vᵀΣv/m, which leaves nothing to be fitted: the
    Kolmogorov-Smirnov distance is the largest error of a probability that the Gaussian
    makes, and its p value is exact.

    The noise takes finitely many values: with enough batches every p value is small.
    The distance, and the kurtosis for the tails, say whether it matters; with n batches
    a Gaussian itself comes out at about 0.87/√n. Along random directions of a large
    network noise looks Gaussian whatever it is, as a sum of many coordinates does, so
    the default is Σ's leading eigenvectors.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    k : int, default=5
        Leading eigenvectors of Σ, at most min(D, N - 1); without ``directions``.
    batch_size : int
        m.
    directions : Tensor of shape (D, k), default=None
        Columns v, of any length; None takes eigenvectors of Σ.
    n_batches : int, default=1000
        Drawn for the distance.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random batches.

    Returns
    -------
    Gaussianity

    Raises
    ------
    ValueError
        If a number is less than 1, ``directions`` are no columns of D numbers, or there
        is no noise along one but rounding.

    Examples
    --------
    Signs have excess kurtosis -2, and the mean of four of them -2/4:

    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(1), torch.tensor([[1.0], [-1.0]]))
    >>> result = minibatch_gaussianity(
    ...     risk, torch.zeros(1), batch_size=4, directions=torch.ones(1, 1)
    ... )
    >>> float(result.excess_kurtosis), result.p_value < 1e-10
    (-0.5, True)
    """
    check_seed(rng)
    batch_size = check_count("batch_size", batch_size)
    k = check_count("k", k)
    n_batches = check_count("n_batches", n_batches)
    theta = as_one_point(risk, theta, "minibatch_gaussianity")
    if directions is None:
        largest = min(risk.n_params, risk.n_examples - 1)
        check_count("k", k, at_most=largest, limit="min(D, N - 1)")
    else:
        _check_directions(directions, risk.n_params)
    generator = make_generator(rng, risk.device)
    if directions is None:
        check_finite("The gradient g₀", risk.gradient(theta), risk)
        pairs = covariance_eigenpairs(risk, theta, k, rng=generator)
        directions = pairs.eigenvectors
    slopes = _slopes(risk, theta, directions)
    moved = (_slopes(risk, nearby(theta), directions) - slopes).abs().mean(-1)
    eps = torch.finfo(risk.dtype).eps
    rounding = moved + eps * slopes.square().mean(-1).sqrt()
    slopes = slopes - slopes.mean(-1, keepdim=True)
    variances = slopes.square().mean(-1)
    silent = (~(variances > (CLEAR * rounding).square())).nonzero().flatten().tolist()
    if silent:
        raise ValueError(
            "Along a direction without noise but rounding, or with numbers that are "
            "not finite, there is nothing to test. Got directions "
            f"{silent} with vᵀΣv = {variances[silent].tolist()}; leave them out."
        )
    scaled = slopes / variances.sqrt().unsqueeze(-1)
    chosen = torch.randint(
        risk.n_examples,
        (n_batches, batch_size),
        generator=generator,
        device=risk.device,
    )
    noise = torch.stack([row[chosen].mean(-1) for row in scaled]) * batch_size**0.5
    distances, p_values = _distances_from_gaussian(noise)
    return Gaussianity(
        skewness=scaled.pow(3).mean(-1) / batch_size**0.5,
        excess_kurtosis=(scaled.pow(4).mean(-1) - 3) / batch_size,
        distance=distances,
        p_values=p_values,
        batch_size=batch_size,
        n_batches=n_batches,
    )


def _check_directions(directions: Tensor, n_params: int) -> None:
    check_floating("directions", directions)
    shape = tuple(directions.shape)
    if len(shape) != 2 or shape[0] != n_params or shape[1] == 0:
        raise ValueError(
            f"directions must have shape ({n_params}, k) with k at least 1. "
            f"Got {shape}."
        )


def _distances_from_gaussian(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return sup |F - Φ| and its p value for each row of noise, of variance 1."""
    tests = [stats.kstest(row, "norm") for row in noise.cpu().numpy()]
    distances = noise.new_tensor([float(test.statistic) for test in tests])
    return distances, noise.new_tensor([float(test.pvalue) for test in tests])


def _slopes(risk: Risk, theta: Tensor, directions: Tensor) -> Tensor:
    """Return gᵢᵀv for each column, (k, N), in float64."""
    columns = directions.unbind(-1)
    point = risk.linearize(theta, n_products=len(columns))
    return torch.stack([point.directional_derivatives(v).double() for v in columns])
