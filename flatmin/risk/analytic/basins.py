"""The two basins of the paper's 2-D example, one sharp and one flat."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, is_number
from flatmin._utils.placement import resolve_dtype
from flatmin._utils.random import make_generator
from flatmin.risk.analytic.analytic_risk import AnalyticRisk
from flatmin.risk.arguments import check_point

__all__ = ["TwoBasinsRisk"]


class _Variant(NamedTuple):
    angle: float
    spreads: tuple[float, float]  # standard deviations of x along axes
    aligned: bool  # those axes: a and b, or the coordinates


_TEXT = _Variant(5 * math.pi / 6, (0.1, 0.1), aligned=False)
_RELEASED = _Variant(math.pi / 4, (0.01 * math.sqrt(10), 0.01), aligned=True)
_VARIANTS = {"text": _TEXT, "released_code": _RELEASED, "matched": _TEXT}


class TwoBasinsRisk(AnalyticRisk):
    """ℓᵢ(w) = min{10 (aᵀs)² + 100 (bᵀs)², ‖w + 1 - xᵢ‖²} with s = w - 1 - xᵢ.

    a = (cos φ, -sin φ) and b = (cos φ, sin φ), which are orthogonal for φ = π/4 only.
    Where all examples are in the sharp basin around (1, 1), H = 2A with
    A = 10 aaᵀ + 100 bbᵀ and Σ = 4 A Cov(x) A; in the flat one around (-1, -1), H = 2I
    and Σ = 4 Cov(x). In between H is the mean over examples of these two, which leaves
    out the concave kinks where an example changes basins: the second derivative almost
    everywhere. It is positive definite, and G = H.

    Parameters
    ----------
    offsets : Tensor of shape (N, 2) or (\\*chains, N, 2)
        xᵢ. With leading dimensions every chain has data of its own; θ then has the
        same ones, or more in front of them.
    angle : float
        φ.

    Raises
    ------
    ValueError
        If ``offsets`` has another shape.

    See Also
    --------
    flatmin.dynamics.simulate : Runs many chains on it.

    References
    ----------
    Appendix B of arXiv 1803.00195.

    Examples
    --------
    >>> risk = TwoBasinsRisk(torch.zeros(1, 2), torch.pi / 4)
    >>> risk.hessian(torch.tensor([1.0, 1.0]))
    tensor([[110.,  90.],
            [ 90., 110.]])
    >>> risk.value_and_gradient(torch.tensor([-2.0, 1.0]))
    (tensor(5.), tensor([-2.,  4.]))
    """

    n_params = 2

    def __init__(self, offsets: Tensor, angle: float) -> None:
        check_floating("offsets", offsets)
        if not is_number(angle):
            raise ValueError(f"angle must be a finite number. Got {angle!r}.")
        if offsets.ndim < 2 or offsets.shape[-1] != 2 or not offsets.shape[-2]:
            raise ValueError(
                "offsets must have shape (N, 2) or (*chains, N, 2) with N of at least "
                f"1. Got {tuple(offsets.shape)}."
            )
        self.offsets = offsets
        self._columns = offsets.mT.contiguous()
        self.angle = angle
        self.n_examples = offsets.shape[-2]
        self.dtype, self.device = offsets.dtype, offsets.device
        cos, sin = math.cos(angle), math.sin(angle)
        axes = offsets.new_tensor([[cos, -sin], [cos, sin]])
        self.matrix = axes.mT @ torch.diag(offsets.new_tensor([10.0, 100.0])) @ axes
        self.sharp_minimum = offsets.new_ones(2)
        self.flat_minimum = -self.sharp_minimum

    @classmethod
    def from_paper(
        cls,
        variant: Literal["text", "released_code", "matched"] = "released_code",
        *,
        n_examples: int = 100,
        chains: tuple[int, ...] = (),
        rng: torch.Generator | int | None = 0,
        dtype: torch.dtype = torch.float64,
    ) -> TwoBasinsRisk:
        """Draw the data of the paper's example.

        =============== ====== ========================== ==================== =========
        variant         φ      xᵢ                         eigenvalues of 2A    η
        =============== ====== ========================== ==================== =========
        text            5π/6   N(0, .01 I)                14.6, 205.4          .1
        released_code   π/4    variances .001 along a     20, 200              .005
                               and .0001 along b
        matched         5π/6   N(0, .01 I)                14.6, 205.4          .006
        =============== ====== ========================== ==================== =========

        The η are not used here. The text's is unstable: η λ_max = 20 > 2, so that
        gradient descent leaves the sharp minimum without any noise. The released code
        adds noise of total variance τ = .01 to the weights, not scaled by η, which is
        Tr(C) = τ/η² in the gradient units of flatmin's laws. "matched" is the text's
        surface at a stable η, for laws of SGD's trace.

        Parameters
        ----------
        variant : {"text", "released_code", "matched"}, default="released_code"
        n_examples : int, default=100
            N.
        chains : tuple of int, default=()
            One set of data for each chain; () is one for all.
        rng : torch.Generator, int or None, default=0
            A seed, a generator whose device the data are on, or None for random
            draws.
        dtype : torch.dtype, default=torch.float64

        Returns
        -------
        TwoBasinsRisk

        Raises
        ------
        TypeError
            If ``chains`` is no tuple.
        ValueError
            If there is no such variant, or a number does not fit.
        """
        check_known("variant", variant, _VARIANTS)
        n_examples = check_count("n_examples", n_examples)
        if not isinstance(chains, tuple | list):
            raise TypeError(f"chains must be a tuple. Got {chains!r}.")
        chains = tuple(check_count("chains", size) for size in chains)
        dtype = resolve_dtype(dtype)
        angle, spreads, aligned = _VARIANTS[variant]
        generator = make_generator(rng)
        x = torch.randn(
            (*chains, n_examples, 2),
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        )
        x = x * x.new_tensor(spreads)
        if aligned:
            cos, sin = math.cos(angle), math.sin(angle)
            x = x @ x.new_tensor([[cos, -sin], [sin, cos]])
        return cls(x.to(dtype), angle)

    def in_flat_basin(self, theta: Tensor) -> Tensor:
        """Say whether both coordinates are less than -0.5, the released code's rule.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, 2)

        Returns
        -------
        Tensor of shape (\\*chains)
            Boolean.
        """
        check_point(self, theta)
        return (theta < -0.5).all(-1)

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`."""
        self._check(theta)
        return torch.minimum(*self._branches(theta)[:2])

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`."""
        self._check(theta)
        return self._losses_and_columns(theta)[1].mT

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`AnalyticRisk.value_and_gradient`; chooses the basins once."""
        self._check(theta)
        losses, columns = self._losses_and_columns(theta)
        return losses.mean(-1), columns.mean(-1)

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`; the second derivative almost everywhere."""
        self._check(theta)
        share = self._share_in_sharp(theta)
        return 2 * (share * self.matrix + (1 - share) * self._identity)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return the roots of both basins' shares of H.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, 2)

        Returns
        -------
        Tensor of shape (\\*chains, 4, 2)
        """
        self._check(theta)
        share = self._share_in_sharp(theta)
        sharp, flat = self._root * share.sqrt(), self._identity * (1 - share).sqrt()
        return math.sqrt(2) * torch.cat([sharp, flat], dim=-2)

    def _branches(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return both branches of the minimum, and half their gradients as columns."""
        # Examples innermost: five times as fast as coordinates innermost.
        from_data = theta.unsqueeze(-1) - self._columns
        displacement, flat_half = from_data - 1, from_data + 1
        sharp_half = self.matrix @ displacement
        sharp = (sharp_half * displacement).sum(-2)
        return sharp, flat_half.square().sum(-2), sharp_half, flat_half

    def _losses_and_columns(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        sharp, flat, sharp_half, flat_half = self._branches(theta)
        is_sharp = (sharp < flat).unsqueeze(-2)
        return torch.minimum(sharp, flat), 2 * torch.where(
            is_sharp, sharp_half, flat_half
        )

    def _share_in_sharp(self, theta: Tensor) -> Tensor:
        """Return the share of examples in the sharp basin, shape (\\*chains, 1, 1)."""
        sharp, flat = self._branches(theta)[:2]
        share: Tensor = (sharp < flat).to(self.dtype).mean(-1)
        return share[..., None, None]

    @cached_property
    def _identity(self) -> Tensor:
        return torch.eye(2, dtype=self.dtype, device=self.device)

    @cached_property
    def _root(self) -> Tensor:
        """R with A = RᵀR."""
        root: Tensor = torch.linalg.cholesky(self.matrix).mT
        return root
