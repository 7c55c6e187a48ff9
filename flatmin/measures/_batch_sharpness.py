"""The curvature of minibatch losses along their own gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from flatmin._utils.numbers import check_count
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact
from flatmin.measures._rounding import CLEAR, nearby
from flatmin.risk import Risk

__all__ = ["batch_sharpness"]

DEFAULT_BATCH_SIZE = 20


def batch_sharpness(
    risk: Risk,
    theta: Point,
    *,
    batch_size: int | None = None,
    n_draws: int = 100,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return E[g_Bᵀ H_B g_B / ‖g_B‖²] over minibatches B, drawn without replacement.

    g_B and H_B are gradient and Hessian of the mean loss of m examples, with the
    penalty of the risk. At m = N it is g₀ᵀHg₀/‖g₀‖², the curvature along the gradient.
    What SGD at the rate η is reported to drive to 2/η, where gradient descent drives
    λ₁. It is not invariant to a reparametrisation.

    A batch costs two gradients and a product with H of its m examples.
    Where there are at most ``n_draws`` batches each is taken once, and the mean is
    exact. A fixed seed means common batches for all models of the same data.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    batch_size : int, default=None
        m; None is min(20, N).
    n_draws : int, default=100
        Independent batches, at least 2.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random batches.

    Returns
    -------
    Estimate
        In units of H; ``stderr`` has ddof 1 and is 0 where all batches are taken,
        ``n_matvecs`` counts them.

    Raises
    ------
    ValueError
        If ``batch_size`` or ``n_draws`` is too small or too large, or the gradient of a
        batch is rounding, as where θ fits its examples.
    FloatingPointError
        If a gradient or a product is not finite.

    References
    ----------
    A. Andreyev and P. Beneventano, "Edge of stochastic stability: Revisiting the edge
    of stability for SGD", arXiv 2412.20553.

    Examples
    --------
    All examples of a quadratic have one Hessian, here diag(5, 1), and at θ = 0 the
    gradients are ±(1, 1): (5 + 1)/2.

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([5.0, 1.0])), slopes)
    >>> batch_sharpness(risk, torch.zeros(2), batch_size=1)
    Estimate(value=3, stderr=0, n_matvecs=2)
    """
    check_seed(rng)
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    n_draws = check_count("n_draws", n_draws, at_least=2)
    theta = as_point(risk, theta)
    n = risk.n_examples
    if batch_size is None:
        batch_size = min(DEFAULT_BATCH_SIZE, n)
    check_count("batch_size", batch_size, at_most=n, limit="N")
    everything = math.comb(n, batch_size) <= n_draws
    if everything:
        batches = _all_batches(risk, batch_size)
    else:
        generator = make_generator(rng, risk.device)
        batches = _random_batches(risk, batch_size, n_draws, generator)
    found = torch.stack([_of_batch(risk.subset(B), theta) for B in batches])
    value = found.mean(0)
    if everything:
        return exact(value, len(found))
    return Estimate(value, found.std(0) / n_draws**0.5, n_draws)


def _all_batches(risk: Risk, m: int) -> Iterator[Tensor]:
    for batch in combinations(range(risk.n_examples), m):
        yield torch.tensor(batch, device=risk.device)


def _random_batches(
    risk: Risk, m: int, n_draws: int, rng: torch.Generator
) -> Iterator[Tensor]:
    for _ in range(n_draws):
        order = torch.randperm(risk.n_examples, generator=rng, device=risk.device)
        yield order[:m]


def _of_batch(batch: Risk, theta: Tensor) -> Tensor:
    """Return gᵀHg/‖g‖² of a risk in float64, shape (\\*chains)."""
    _, gradient, product = batch.value_gradient_and_product(theta)
    check_finite("The gradient of a minibatch", gradient, batch)
    check_finite("A product with the Hessian of a minibatch", product, batch)
    change = torch.linalg.vector_norm(
        gradient.double() - batch.gradient(nearby(theta)).double(), dim=-1
    )
    gradient = gradient.double()
    norm = torch.linalg.vector_norm(gradient, dim=-1)
    lost = ~(norm > CLEAR * change)
    if bool(lost.any()):
        raise ValueError(
            "batch_sharpness divides by ‖g_B‖²: the gradient of each minibatch must be "
            f"more than rounding. Got ‖g_B‖ = {float(norm[lost].flatten()[0]):.3g}, "
            "where rounding makes as much: θ fits the examples of that batch. Use a "
            "larger batch_size, another θ, or float64."
        )
    unit = gradient / norm.unsqueeze(-1)
    return (unit * (product.double() / norm.unsqueeze(-1))).sum(-1)
