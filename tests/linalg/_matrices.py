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
