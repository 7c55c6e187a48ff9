"""What the answers are, in float64 by plain PyTorch and SciPy alone."""

from __future__ import annotations

import numpy as np
import torch
from _problems import BATCH_SIZE, Problem, flat, split_like
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
        return flat(self.gradients).detach()

    def hvp(self, v: Tensor) -> Tensor:
        products = torch.autograd.grad(
            self.gradients,
            self.params,
            split_like(v.double(), self.params),
            retain_graph=True,
        )
        return flat(products)

    def ggn(self, v: Tensor) -> Tensor:
        """Return Jᵀ H_f J v, with J v as the derivative of Jᵀ u in u."""
        with sdpa_kernel(SDPBackend.MATH):
            f = self.problem.module(self.problem.X)
            u = torch.zeros_like(f, requires_grad=True)
            pulled = torch.autograd.grad(f, self.params, u, create_graph=True)
            (Jv,) = torch.autograd.grad(
                pulled, u, split_like(v.double(), self.params), retain_graph=True
            )
            outputs = f.detach().requires_grad_()
            loss = self.problem.criterion(outputs, self.problem.y)
            (slopes,) = torch.autograd.grad(loss, outputs, create_graph=True)
            (HJv,) = torch.autograd.grad(slopes, outputs, Jv)
            return flat(torch.autograd.grad(f, self.params, HJv))

    def example_gradients(self) -> Tensor:
        """Return all gᵢ, shape (N, D), one at a time."""
        module, criterion = self.problem.module, self.problem.criterion
        pairs = zip(self.problem.X.split(1), self.problem.y.split(1), strict=True)
        return torch.stack(
            [
                flat(torch.autograd.grad(criterion(module(x), y), self.params))
                for x, y in pairs
            ]
        )


def largest_eigenvalues(problem: Problem, point: DoublePoint) -> Tensor:
    """Return the k largest eigenvalues of H, in falling order.

    The vectors come from ARPACK on products in float32, which are much faster, the
    values are Rayleigh quotients in float64: their error is the square of the vectors'.
    """
    fast = point.problem.single().channels_last()
    with sdpa_kernel(SDPBackend.MATH):
        loss = fast.criterion(fast.module(fast.X), fast.y)
        slopes = torch.autograd.grad(loss, fast.params, create_graph=True)

    def product(v: np.ndarray) -> np.ndarray:
        parts = split_like(torch.as_tensor(v.ravel()), fast.params)
        products = torch.autograd.grad(slopes, fast.params, parts, retain_graph=True)
        return flat(products).numpy()

    size = len(problem.theta())
    _, vectors = eigsh(
        LinearOperator((size, size), matvec=product, dtype=np.float32),
        problem.n_components,
        which="LA",
        tol=1e-4,
        v0=np.random.default_rng(0).standard_normal(size).astype(np.float32),
    )
    units = torch.as_tensor(vectors).double().T
    units = units / units.norm(dim=1, keepdim=True)
    values = torch.stack([u @ point.hvp(u) for u in units])
    return values.sort(descending=True).values


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
        reference["eigenvalues"] = largest_eigenvalues(problem, point)
    rows = point.example_gradients()
    reference["squared norms"] = rows.square().sum(1)
    reference["variances"] = rows.var(0, correction=0)
    reference["trace"] = reference["variances"].sum() / BATCH_SIZE
    reference["uncentred trace"] = reference["squared norms"].mean() / BATCH_SIZE
    return reference
