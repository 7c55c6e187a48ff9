"""What the answers are, in float64 by plain PyTorch and SciPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from _problems import BATCH_SIZE, Problem
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["DoublePoint", "make_reference"]


class DoublePoint:
    """The gradient's graph at θ in float64, kept for products with H."""

    def __init__(self, problem: Problem, theta: Tensor) -> None:
        self.problem = problem.at(theta).double()
        self.params = self.problem.params
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self.problem.module(self.problem.X)
            loss = self.problem.criterion(outputs, self.problem.y)
            self.gradients = torch.autograd.grad(loss, self.params, create_graph=True)

    def gradient(self) -> Tensor:
        return _flat(self.gradients).detach()

    def hvp(self, v: Tensor) -> Tensor:
        products = torch.autograd.grad(
            self.gradients, self.params, self._split(v), retain_graph=True
        )
        return _flat(products)

    def ggn(self, v: Tensor) -> Tensor:
        """Return Jᵀ H_f J v, with J v as the derivative of Jᵀ u in u."""
        with sdpa_kernel(SDPBackend.MATH):
            f = self.problem.module(self.problem.X)
            u = torch.zeros_like(f, requires_grad=True)
            pulled = torch.autograd.grad(f, self.params, u, create_graph=True)
            (Jv,) = torch.autograd.grad(pulled, u, self._split(v), retain_graph=True)
            outputs = f.detach().requires_grad_()
            loss = self.problem.criterion(outputs, self.problem.y)
            (slopes,) = torch.autograd.grad(loss, outputs, create_graph=True)
            (HJv,) = torch.autograd.grad(slopes, outputs, Jv)
            return _flat(torch.autograd.grad(f, self.params, HJv))

    def example_gradients(self) -> Tensor:
        """Return all gᵢ, shape (N, D), one at a time."""
        module, criterion = self.problem.module, self.problem.criterion
        pairs = zip(self.problem.X.split(1), self.problem.y.split(1), strict=True)
        return torch.stack(
            [
                _flat(torch.autograd.grad(criterion(module(x), y), self.params))
                for x, y in pairs
            ]
        )

    def eigenvalues(self, k: int) -> Tensor:
        """Return the k largest eigenvalues of H, by ARPACK."""
        size = sum(p.numel() for p in self.params)
        operator = LinearOperator(
            (size, size),
            matvec=lambda v: self.hvp(torch.as_tensor(v).flatten()).numpy(),
            dtype=np.float64,
        )
        start = np.random.default_rng(0).standard_normal(size)
        # An eigenvalue's error is the square of its residual, about.
        values = eigsh(
            operator, k, which="LA", tol=1e-5, v0=start, return_eigenvectors=False
        )
        return torch.as_tensor(values).sort(descending=True).values

    def _split(self, v: Tensor) -> list[Tensor]:
        parts = v.double().split([p.numel() for p in self.params])
        return [v.view(p.shape) for v, p in zip(parts, self.params, strict=True)]


def make_reference(problem: Problem) -> dict[str, Tensor]:
    """Return θ, a direction v, and every quantity there."""
    theta = problem.descend()
    point = DoublePoint(problem, theta)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))
    reference = {
        "theta": theta,
        "v": v,
        "gradient": point.gradient(),
        "hvp": point.hvp(v),
        "ggn": point.ggn(v),
    }
    if problem.name != "cubic":
        reference["eigenvalues"] = point.eigenvalues(problem.n_components)
    rows = point.example_gradients()
    reference["squared norms"] = rows.square().sum(1)
    reference["variances"] = rows.var(0, correction=0)
    reference["trace"] = reference["variances"].sum() / BATCH_SIZE
    reference["uncentred trace"] = reference["squared norms"].mean() / BATCH_SIZE
    return reference


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
