"""A well of chosen curvature and barrier, in one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatmin._utils.numbers import check_held_by, check_positive
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin.risk.analytic.analytic_risk import AnalyticRisk

__all__ = ["DoubleWellRisk"]


class DoubleWellRisk(AnalyticRisk):
    """L(θ) = b ((θ/w)² - 1)² with L'' = k at both minima ±w and the barrier b at 0.

    The half width is w = √(8b/k), and L'' = -k/2 on the barrier: two wells of one
    depth, sharper or flatter as k is. For mean times of escape start at ``minimum``.
    White noise of temperature T comes to the other minimum after about
    2π √2/k · exp(b/T) units of time, an iteration being η of them, and to the barrier
    in half of that (Kramers). As a squared error of f = √b (θ/w)² it has G = k (θ/w)².

    It has one example, so that Σ = 0, and laws with a size of their own move on it:
    ``GLDConst(sigma=s)`` is white noise of T = η s²/2, and
    ``GLDHessian(match="none", noise_scale=c)`` has C = c² |H(θ)|, which vanishes at the
    inflections. With ``refresh_every`` as long as the run C keeps the H of the start.

    Parameters
    ----------
    curvature : float, default=1.0
        k, in units of loss over θ².
    barrier : float, default=1.0
        b, in units of loss.
    dtype : torch.dtype or str, default="float32"
    device : torch.device or str, default="cpu"

    Raises
    ------
    ValueError
        If a number is not positive.

    See Also
    --------
    flatmin.dynamics.simulate : Runs many chains on it.

    References
    ----------
    Z. Xie, I. Sato and M. Sugiyama, "A diffusion theory for deep learning dynamics",
    ICLR 2021, arXiv 2002.03495, for times of escape by noise that follows H.

    Examples
    --------
    >>> risk = DoubleWellRisk(curvature=2.0, barrier=1.0)  # w = 2
    >>> theta = torch.tensor([[2.0], [0.0], [-2.0]])
    >>> risk.value(theta), risk.hessian(theta).flatten()
    (tensor([0., 1., 0.]), tensor([ 2., -1.,  2.]))
    """

    n_params = 1
    n_examples = 1

    def __init__(
        self,
        curvature: float = 1.0,
        barrier: float = 1.0,
        *,
        dtype: torch.dtype | str = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.curvature = check_positive("curvature", curvature)
        self.barrier = check_positive("barrier", barrier)
        self.dtype = resolve_dtype(dtype)
        check_held_by("curvature", self.curvature, self.dtype)
        check_held_by("barrier", self.barrier, self.dtype)
        self.device = resolve_device(device)
        self.width = math.sqrt(8 * self.barrier / self.curvature)
        self.minimum = torch.tensor([self.width], dtype=self.dtype, device=self.device)

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`; one example."""
        self._check(theta)
        return self.barrier * self._height(theta).square()

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`; one example."""
        self._check(theta)
        # L' = (4b/w²) θ ((θ/w)² - 1), and 4b/w² = k/2.
        slope = self.curvature / 2 * theta * self._height(theta)
        return slope.unsqueeze(-2)

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`."""
        self._check(theta)
        curved = self.curvature / 2 * (3 * self._height(theta) + 2)
        return curved.unsqueeze(-1)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return √2 df/dθ.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, 1)

        Returns
        -------
        Tensor of shape (\\*chains, 1, 1)
        """
        self._check(theta)
        return (math.sqrt(self.curvature) / self.width * theta).unsqueeze(-1)

    def _height(self, theta: Tensor) -> Tensor:
        """Return (θ/w)² - 1, shape (\\*chains, 1)."""
        return (theta / self.width).square() - 1
