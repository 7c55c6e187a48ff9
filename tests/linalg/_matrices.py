"""Matrices with a known spectrum."""

import torch

from flatmin.linalg import DenseOperator, LinearOperator


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=dtype)


def with_spectrum(values, seed=0):
    """Return Q diag(values) Qᵀ with a random orthogonal Q, in float64."""
    values = torch.as_tensor(values, dtype=torch.float64)
    Q = torch.linalg.qr(randn(len(values), len(values), seed=seed)).Q
    return (Q * values) @ Q.T


def operator(values, dtype=torch.float64, seed=0):
    return DenseOperator(with_spectrum(values, seed).to(dtype))


class Reflected(LinearOperator):
    """P diag(values) P with P = I - 2uuᵀ: any size, no matrix."""

    def __init__(self, values, dtype=torch.float64, seed=0):
        super().__init__(len(values), dtype=dtype, device=torch.device("cpu"))
        self.values = torch.as_tensor(values, dtype=torch.float64)
        u = randn(len(values), seed=seed)
        self.u = u / u.norm()

    def reflect(self, v):
        return v - 2 * self.u * (self.u @ v)

    def exact(self, v):
        return self.reflect(self.values * self.reflect(v.double()))

    def _matvec(self, v):
        return self.exact(v).to(self.dtype)


class Bare(LinearOperator):
    """Q diag(values) Qᵀ that is known by its products alone."""

    def __init__(self, values, dtype=torch.float64, seed=0):
        super().__init__(len(values), dtype=dtype, device=torch.device("cpu"))
        self.matrix = with_spectrum(values, seed)

    def _matvec(self, v):
        return (self.matrix @ v.double()).to(self.dtype)

    def matmat(self, V):
        self.n_matvecs += V.shape[-1]
        return (self.matrix @ V.double()).to(self.dtype)


N = 300

# Eigenvalues of N x N matrices for which estimates behave differently.
SPECTRA = {
    "outliers": [*(20 * 0.8 ** torch.arange(20.0)), *torch.linspace(-0.5, 1, N - 20)],
    "decaying": list(1 / torch.arange(1.0, N + 1)),
    "clustered": [*([3.0] * 100), *([1.0] * (N - 100))],
    "indefinite": list(torch.linspace(-1, 3, N)),
    "one large": [100, *torch.linspace(0, 1, N - 1)],
    "low rank": [5, 4, 3, -2, 1, *[0] * (N - 5)],
    "zero": [0.0] * N,
    "identity": [1.0] * N,
}


def wishart(seed=0, n=400):
    """Return XᵀX/n of n standard normal rows of N numbers, in float64."""
    X = randn(n, N, seed=seed)
    return X.T @ X / n
