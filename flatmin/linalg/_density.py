"""The spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flatmin._utils.arrays import check_tensor
from flatmin._utils.callables import check_callable
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import ShortRepr
from flatmin.linalg._dense import eigh
from flatmin.linalg._lanczos import LanczosProcess
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._probes import rademacher
from flatmin.linalg._unit_scale import UnitScaled

__all__ = ["SpectralDensity", "spectral_density"]

# Above it a dense eigendecomposition takes longer than most products, and its memory
# grows with D².
_MAX_DENSE = 2048

# Steps between two looks at whether the Krylov space has ended; each waits for the
# device.
_STEPS = 8


@dataclass(frozen=True, repr=False)
class SpectralDensity(ShortRepr):
    """The eigenvalues of A as a distribution p(λ) = (1/D) Σ δ(λ - λᵢ).

    Every probe gives a discrete distribution of its own, whose weights sum to one. The
    methods return the mean over n probes and its standard error, which is 0 where the
    density is exact. The error of the quadrature, which is the same for all probes, is
    not part of it: repeat with more ``n_steps`` to see it.

    The standard error is (2 v / (D (n - 2)))^(1/2), where v = (1/D) Tr f(A)² - ((1/D)
    Tr f(A))² is the variance of f over the spectrum: for random signs the variance of
    zᵀf(A)z / D is 2 (‖f(A)‖²_F - Σ f(A)ᵢᵢ²) / D² [1]_, at most 2 v / D. The spread of
    the probes themselves would be too small an error: where an outlier makes up f(A),
    each probe is χ² distributed with one degree of freedom, and those that see little
    of the outlier also see little of its spread. n - 2 in place of n makes two standard
    errors hold 95 % there, for 3 probes and more. Where f(A) is nearly diagonal the
    error is smaller than that.

    References
    ----------
    .. [1] M. F. Hutchinson, "A stochastic estimator of the trace of the influence
       matrix for Laplacian smoothing splines", 1989,
       :doi:`10.1080/03610918908812806`.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DiagonalOperator, spectral_density
    >>> A = DiagonalOperator(torch.tensor([1.0, 2.0, 3.0]))
    >>> density = spectral_density(A, rng=0)
    >>> density.exact, density.nodes
    (True, tensor([[1., 2., 3.]], dtype=torch.float64))
    >>> density.moment(1)[0]
    tensor(2., dtype=torch.float64)
    """

    nodes: Tensor  # (n_probes, n_steps) Ritz values, float64, rising
    weights: Tensor  # (n_probes, n_steps), float64, rows sum to one
    exact: bool  # all D eigenvalues as one probe
    n_matvecs: int
    size: int  # D

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return (1/D) Tr f(A) = ∫ f(λ) p(λ) dλ.

        Parameters
        ----------
        function : callable
            f, element by element; takes and returns a Tensor of the nodes' shape.

        Returns
        -------
        value : Tensor of shape ()
        stderr : Tensor of shape ()
        """
        check_callable("function", function, "nodes")
        values = function(self.nodes)
        # Squares of what is 1e200 overflow, and those of 1e-200 are 0.
        largest = float(values.abs().max())
        unit = largest if 0 < largest < math.inf else 1.0
        values = values / unit
        mean, square = ((self.weights * f).sum(1) for f in (values, values.square()))
        value, stderr = self._over_probes(mean, square)
        return unit * value, unit * stderr

    def moment(self, p: int) -> tuple[Tensor, Tensor]:
        """Return (1/D) Tr Aᵖ; the quadrature itself is exact for p < 2 n_steps.

        Parameters
        ----------
        p : int
            At least 0.

        Returns
        -------
        value : Tensor of shape ()
        stderr : Tensor of shape ()

        Raises
        ------
        ValueError
            If p is no integer of at least 0.
        """
        p = check_count("p", p, at_least=0)
        return self.mean(lambda nodes: nodes**p)

    @property
    def default_width(self) -> float:
        """A hundredth of the range of the nodes, or of their size if it is 0."""
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return ((high - low) or abs(high) or 1.0) / 100

    def density(
        self, grid: Tensor, width: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return p smoothed by a normal density, which integrates to one.

        Parameters
        ----------
        grid : Tensor of shape (n,)
            Where to evaluate.
        width : float, default=None
            Standard deviation, in units of the eigenvalues; None is
            ``default_width``. Structure finer than the range of the eigenvalues over
            ``n_steps`` is the quadrature's.

        Returns
        -------
        value : Tensor of shape (n,)
        stderr : Tensor of shape (n,)

        Raises
        ------
        ValueError
            If ``width`` is not positive.
        """
        if width is None:
            width = self.default_width
        width = check_positive("width", width)
        height = 1 / max(width * (2 * torch.pi) ** 0.5, 5e-324)
        if not math.isfinite(height):
            raise ValueError(
                f"width must be large enough for 1/width to be finite. Got {width}."
            )
        value, stderr = self._on_grid(
            grid, lambda x: torch.exp(-((x / width) ** 2) / 2)
        )
        return height * value, height * stderr

    def cumulative(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of eigenvalues that are at most x.

        A step function with a step at every node, off by up to the height of one
        step.

        Parameters
        ----------
        grid : Tensor of shape (n,)
            Where to evaluate.

        Returns
        -------
        value : Tensor of shape (n,)
        stderr : Tensor of shape (n,)
        """
        return self._on_grid(grid, lambda x: (x >= 0).double())

    def _on_grid(
        self, grid: Tensor, kernel: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        check_tensor("grid", grid)
        if grid.ndim != 1:
            raise ValueError(f"grid must have shape (n,). Got {tuple(grid.shape)}.")
        points = grid.to(self.nodes).unsqueeze(1)
        # Probe by probe, to save memory: all are n_probes · n_steps · n numbers.
        means, squares = [], []
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            values = kernel(points - nodes)
            means.append(values @ weights)
            squares.append(values.square() @ weights)
        return self._over_probes(torch.stack(means), torch.stack(squares))

    def _over_probes(self, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of f and its standard error, from f and f² of each probe."""
        mean = means.mean(0)
        if self.exact:
            return mean, torch.zeros_like(mean)
        variance = (squares.mean(0) - mean.square()).clamp(min=0)
        # n - 2 is 0 for two probes. With 0.4 two standard errors hold 95 % there too.
        n = max(len(means) - 2, 0.4)
        return mean, (2 * variance / (self.size * n)).sqrt()


def spectral_density(
    operator: LinearOperator,
    *,
    method: Literal["auto", "exact", "lanczos"] = "auto",
    n_probes: int = 10,
    n_steps: int = 80,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> SpectralDensity:
    """Return the distribution of the eigenvalues of a symmetric operator.

    Stochastic Lanczos quadrature [1]_, [2]_: from a probe z of random signs, the
    eigenvalues of the tridiagonal matrix T are the nodes and the squared first
    entries of its eigenvectors the weights of a Gauss quadrature for
    zᵀ f(A) z / D, whose mean over z is (1/D) Tr f(A). Orthogonalisation is full, so
    no node is a ghost. A Krylov space that ends early makes the probe's quadrature
    exact.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    method : {"auto", "exact", "lanczos"}, default="auto"
        ``"exact"`` forms the matrix by D products and takes all its eigenvalues;
        ``"auto"`` does that where it needs no more products and D ≤ 2048.
    n_probes : int, default=10
        2 or more, as one probe has no spread.
    n_steps : int, default=80
        Products for each probe at most, and as many vectors are kept in memory.
    rng : torch.Generator, int or None, default=None
        For the probes; None is random.
    verbose : bool, default=False
        Show a progress bar over the products.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    ValueError
        If ``method`` is unknown, ``n_probes`` is less than 2, ``n_steps`` less than
        1 or the operator holds several matrices.
    torch.linalg.LinAlgError
        If a product is not finite.

    References
    ----------
    .. [1] S. Ubaru, J. Chen and Y. Saad, "Fast estimation of tr(f(A)) via stochastic
       Lanczos quadrature", 2017, :doi:`10.1137/16M1104974`.
    .. [2] B. Ghorbani, S. Krishnan and Y. Xiao, "An investigation into neural net
       optimization via Hessian eigenvalue density", 2019,
       :doi:`10.48550/arXiv.1901.10159`.

    Examples
    --------
    A tenth of the eigenvalues is 3, the others are 0.

    >>> from flatmin.linalg import DiagonalOperator
    >>> A = DiagonalOperator(torch.tensor([3.0] * 100 + [0.0] * 900))
    >>> result = spectral_density(A, rng=0)
    >>> value, stderr = result.cumulative(torch.tensor([-1.0, 1.0, 4.0]))
    >>> value
    tensor([0.0000, 0.9000, 1.0000], dtype=torch.float64)
    >>> result.moment(2)[0]
    tensor(0.9000, dtype=torch.float64)
    """
    check_one_matrix(operator, "spectral_density")
    check_seed(rng)
    check_known("method", method, ("auto", "exact", "lanczos"))
    n_probes = check_count("n_probes", n_probes, at_least=2)
    n_steps = check_count("n_steps", n_steps)
    size, before = operator.shape[-1], operator.n_matvecs
    unit = UnitScaled(operator)
    if method == "auto":
        cheap = size <= min(n_probes * n_steps, _MAX_DENSE)
        method = "exact" if cheap else "lanczos"
    if method == "exact":
        matrix = unit.to_dense().double()
        nodes = unit.scale * eigh((matrix + matrix.mT) / 2)[0].unsqueeze(0)
        weights = torch.full_like(nodes, 1 / size)
        return SpectralDensity(nodes, weights, True, operator.n_matvecs - before, size)

    generator = make_generator(rng, operator.device)
    process = LanczosProcess(unit, min(n_steps, size))
    found = []
    total = n_probes * process.max_steps
    with progress_bar(total, "spectral density", verbose=verbose) as bar:
        for _ in range(n_probes):
            process.start(rademacher(operator, generator) / size**0.5)
            while process.n_steps < process.max_steps and not process.exhausted:
                taken = process.n_steps
                process.advance(_STEPS)
                bar.update(process.n_steps - taken)
            found.append(_quadrature(process))
    nodes, weights = map(torch.stack, zip(*found, strict=True))
    n_matvecs = operator.n_matvecs - before
    return SpectralDensity(unit.scale * nodes, weights, False, n_matvecs, size)


def _quadrature(process: LanczosProcess) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, shape (max_steps,) each."""
    # If the Krylov space ended early, the largest node fills the rest, with weight 0.
    # Another number, such as 0, need not be an eigenvalue, and f may have no value.
    n = process.n_vectors
    nodes, S = eigh(process.tridiagonal()[:n, :n])
    weights = nodes.new_zeros(process.max_steps)
    weights[:n] = S[0].square()
    return torch.cat([nodes, nodes[-1:].expand(process.max_steps - n)]), weights
