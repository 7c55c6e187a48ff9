"""Symmetric matrices of known spectrum, of any scale, as operators of any kind."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from flatmin.linalg import DenseOperator, FunctionOperator

from ._draws import seeds, some


@dataclass(frozen=True, eq=False)
class Matrix:
    """2^exponent · A, with A of order one or zero; the product has no rounding."""

    A: torch.Tensor  # (D, D) float64, entries that dtype holds
    exponent: int
    dtype: torch.dtype
    known: bool  # as a matrix, or by its products alone
    name: str

    def __repr__(self):  # Hypothesis prints it
        kind = "matrix" if self.known else "products"
        return f"<{self.name}, 2^{self.exponent}, {self.dtype}, {kind}>"

    def __len__(self):
        return len(self.A)

    @property
    def eps(self):
        return torch.finfo(self.dtype).eps

    @property
    def scaled(self):
        return (self.A * 2.0**self.exponent).to(self.dtype)

    def unscaled(self, found, power=1.0):
        """Return a number, found for the scaled matrix, as one of A in float64."""
        return found.double() * 2.0 ** (-power * self.exponent)

    def operator(self):
        matrix = self.scaled
        if self.known:
            return DenseOperator(matrix)
        return FunctionOperator(lambda v: matrix @ v, len(self), dtype=self.dtype)


def spectra(D):
    """Return lists of D eigenvalues."""
    found = {
        "spread": torch.linspace(-1, 1.5, D),
        "positive": torch.linspace(0.5, 1.5, D),
        "decaying": 1 / torch.arange(1.0, D + 1) ** 2,
        "wide": torch.logspace(0, -12, D),
        "repeated": 3 * (torch.arange(D) // 3 - 1) / D,
        "two": torch.where(torch.arange(D) < D // 2, 1.0, -1.0),
        "all equal": torch.full((D,), -0.75),
        "rank one": torch.eye(D)[0],
        "rank two": torch.eye(D)[0] - 0.5 * torch.eye(D)[-1],
        "zero": torch.zeros(D),
    }
    return {name: values.double() for name, values in found.items()}


@st.composite
def matrices(draw):
    """Sizes below and above those that are solved densely."""
    D = draw(st.integers(1, 12) | some([64, 65, 100, 230]))
    kind, values = draw(some(list(spectra(D).items())))
    seed = draw(st.none() | seeds)
    A, name = torch.diag(values), f"{kind}, D={D}, diagonal"
    if seed is not None:
        rng = torch.Generator().manual_seed(seed)
        Q = torch.linalg.qr(torch.randn(D, D, generator=rng, dtype=torch.float64)).Q
        A, name = (Q * values) @ Q.T, f"{kind}, D={D}, turned by {seed}"
    dtype = draw(some([torch.float32, torch.float64]))
    most = 100 if dtype == torch.float32 else 332  # 1e30 and 1e100
    exponent = draw(some([0, most, -most]) | st.integers(-most, most))
    A = ((A + A.T) / 2).to(dtype).double()
    return Matrix(A, exponent, dtype, draw(st.booleans()), name)
