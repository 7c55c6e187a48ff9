"""A search of eigenpairs with few vectors, and residuals by products at its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin.linalg._basis_memory import BasisMemory
from flatmin.linalg._bounded_basis import BoundedBasis
from flatmin.linalg._bounded_lanczos import BoundedLanczos
from flatmin.linalg._copies import differ, has_copies, n_search_steps, search_gaps
from flatmin.linalg._dense import check_finite_products
from flatmin.linalg._distributed import VectorShards
from flatmin.linalg._eigenpairs import Eigenpairs, Which, order_eigenvalues
from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._orthogonal import column_blocks, dots
from flatmin.linalg._thick_restart import advance, tell, warn_unless_converged

__all__ = ["bounded_search"]


class _Search:
    """The loop, and what it has seen so far."""

    def __init__(
        self,
        process: BoundedLanczos,
        k: int,
        which: Which,
        tol: float,
        *,
        size: int,
        limit: int,
        bar: Any,
    ) -> None:
        self.process = process
        self.k, self.which, self.tol = k, which, tol
        self.size, self.limit, self.bar = size, limit, bar
        self.repeated = False
        self.incomplete: Tensor | None = None  # values that a copy is missing from
        self.ends = process.H.new_empty(0)  # the lowest and the highest Ritz value
        self.scale = process.H.new_zeros(())  # max |λ|
        self.hint = ""

    def run(self) -> tuple[Tensor, str]:
        """Search, and look for copies of what is found.

        Returns
        -------
        vectors : Tensor of shape (k, w)
            The wanted Ritz vectors.
        outcome : str
            "spent", or what the look has come to.
        """
        process = self.process
        while True:
            spent = advance(process, self.k, self.which, limit=self.limit, bar=self.bar)
            ritz, S, residuals = process.ritz()
            self._see(ritz)
            wanted = order_eigenvalues(ritz, self.which, self.k)
            coefficients, values = S[:, wanted], ritz[wanted]
            done = residuals[wanted] <= self.tol * self.scale
            tell(self.bar, done, residuals[wanted] / self.scale)
            if bool(done.all()) and not self._is_known(ritz):
                process.lock(coefficients, values)
                outcome = self._look(values, ritz)
                if outcome != "copies" or process.n_matvecs >= self.limit:
                    eye = torch.eye(self.k, dtype=S.dtype, device=S.device)
                    return process.combined(eye), outcome
                self.repeated, self.incomplete = True, values
            elif spent or self._is_rounding(coefficients, residuals[wanted]):
                return process.combined(coefficients), "spent"

    def _is_known(self, ritz: Tensor) -> bool:
        """Return whether the copy that a look has seen is still to come."""
        allowed = 2 * self.tol * self.scale
        return self.incomplete is not None and not differ(
            ritz, self.incomplete, self.which, allowed
        )

    def _see(self, ritz: Tensor) -> None:
        seen = torch.cat([ritz, self.ends])
        self.ends = torch.stack([seen.amin(), seen.amax()])
        self.scale = self.ends.abs().amax()

    def _is_rounding(self, coefficients: Tensor, residuals: Tensor) -> bool:
        """Return whether a residual is the rounding of the storage, and too large."""
        left_out = self.process.left_out(coefficients)
        is_most = residuals <= 2**0.5 * left_out
        if not bool((is_most & (left_out > self.tol * self.scale)).any()):
            return False
        self.hint = (
            " The rounding of the basis alone is of that size: take a finer "
            "basis_dtype, or a larger max_basis."
        )
        return True

    def _look(self, found: Tensor, ritz: Tensor) -> str:
        """Look for missing copies; return "copies", "nothing" or "cut short"."""
        process = self.process
        allowed = 2 * self.tol * self.scale
        self.repeated = self.repeated or has_copies(found, allowed)
        known = torch.cat([ritz, self.ends])
        for gap in search_gaps(
            found, known, self.which, allowed, repeated=self.repeated
        ):
            length = n_search_steps(self.size, gap)
            n_steps = min(length, self.limit - process.n_matvecs)
            if n_steps < 1:
                return "cut short"
            before = process.n_matvecs
            seen = torch.cat([found, process.look(n_steps)])
            self.bar.update(process.n_matvecs - before)
            if differ(seen, found, self.which, allowed):
                return "copies"
            if n_steps < length:
                return "cut short"
        return "nothing"


def bounded_search(
    operator: LinearOperator,
    k: int,
    which: Which,
    tol: float,
    *,
    start: Tensor | None,
    limit: int,
    memory: BasisMemory,
    rng: torch.Generator,
    bar: Any,
) -> Eigenpairs:
    """Return k extreme eigenpairs, as :func:`eigsh` describes.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    k : int
    which : {"LM", "LA", "SA", "BE"}
    tol : float
    start : Tensor of shape (D,) or None
        Of length one; None draws it.
    limit : int
        Products at most, 2 k or more.
    memory : BasisMemory
        Of more than k vectors, and well below D.
    rng : torch.Generator
        For fresh vectors, on the operator's device.
    bar : tqdm.tqdm
        Counts products.

    Returns
    -------
    Eigenpairs
        The vectors are shards.
    """
    process = BoundedLanczos(operator, start, memory=memory, rng=rng)
    size, ranks = operator.shape[-1], memory.ranks
    # k products are for the residuals.
    search = _Search(process, k, which, tol, size=size, limit=limit - k, bar=bar)
    vectors, outcome = search.run()
    process.basis.clear()
    values, residuals = _measured(process.basis, vectors)
    bar.update(k)
    order = order_eigenvalues(values, which, k)
    values, vectors, residuals = values[order], vectors[order], residuals[order]
    scale = torch.maximum(search.scale, values.abs().amax())
    done = residuals <= tol * scale
    if outcome != "nothing" and (outcome != "spent" or bool(done.all())):
        done = torch.zeros_like(done)  # no look for copies came to its end
    tell(bar, done, residuals / scale)
    device, mine = operator.device, ranks.coordinates
    result = Eigenpairs(
        values.to(device),
        vectors[:, : mine.stop - mine.start].mT.to(device),
        residuals.to(device),
        done.to(device),
        process.n_matvecs + k,
    )
    warn_unless_converged(result, tol, scale, hint=search.hint)
    return result


def _measured(basis: BoundedBasis, U: Tensor) -> tuple[Tensor, Tensor]:
    """Measure Ritz pairs by a product with each vector.

    Parameters
    ----------
    basis : BoundedBasis
    U : Tensor of shape (k, w)
        Orthonormal to the rounding of the basis. They become so to that of the
        products, in place.

    Returns
    -------
    values : Tensor of shape (k,)
        Rayleigh quotients.
    residuals : Tensor of shape (k,)
    """
    _orthonormalise(U, basis.ranks)
    found = [_measured_one(basis, u) for u in U]
    values, squares = (torch.stack(numbers) for numbers in zip(*found, strict=True))
    check_finite_products(values)
    return values, squares.sqrt()


def _orthonormalise(U: Tensor, ranks: VectorShards) -> None:
    gram = ranks.of_first(ranks.sum(dots(U, U.mT)))
    check_finite_products(gram)
    lower = torch.linalg.cholesky(gram)
    for block in column_blocks(U):
        part = torch.linalg.solve_triangular(lower, U[:, block].double(), upper=False)
        U[:, block] = part.to(U.dtype)


def _measured_one(basis: BoundedBasis, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return uᵀAu and ‖Au - (uᵀAu) u‖², in float64."""
    w = basis.product_with(u)
    value = basis.ranks.sum(dots(u.unsqueeze(0), w))[0]
    square = torch.zeros_like(value)
    for block in column_blocks(w.unsqueeze(0)):
        rest = w[block].double() - value * u[block].double()
        square += rest @ rest
    return value, basis.ranks.sum(square)
