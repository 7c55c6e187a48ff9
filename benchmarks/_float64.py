"""A classifier's curvature and gradient noise in float64, without flatmin.

By one double backward pass a product, one backward pass a logit and example, and NumPy
and SciPy for the rest. Where a number cannot be had exactly in reasonable time it is
estimated here too, independently, and has a standard error of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from _problems import Problem, flat
from _reference import DoublePoint
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Known", "Truth"]

DENSE = 3000  # parameters up to which all of H is built
EXACT = 300  # examples up to which Tr(HΣ) takes one product each
CHUNK = 100  # examples a graph: a few such graphs are faster than a large one
SEED = 4321  # another one than flatmin gets


class Known(NamedTuple):
    """A number and its standard error, 0 where it is exact."""

    value: float
    stderr: float = 0.0


class Sweep(NamedTuple):
    """What one pass over all examples and logits gives; S is softmax's Hessian."""

    gradients: np.ndarray  # (N, D) gᵢ
    factors: np.ndarray  # (N c, D) rows B with G = BᵀB, of the first examples only
    ggn_diagonal: np.ndarray  # (D,) diag G, of all
    fisher_rao: float  # θᵀGθ, of all


class Truth:
    """The mean cross-entropy of a module over data at θ, N examples, D parameters.

    A network of more than ``DENSE`` parameters has to have logits that are piecewise
    linear in any one parameter, as with ReLU and max pooling: then diag H = diag G,
    which costs one sweep. It is checked on four entries.
    """

    def __init__(self, problem: Problem, theta: Tensor, k: int) -> None:
        self.problem = problem.at(theta).double()
        self.theta = theta.double().numpy()
        self.k = k
        self.n_examples, self.n_params = len(problem.X), len(theta)

    def first(self, n: int) -> Truth:
        """Return the same of the first n examples."""
        part = replace(self.problem, X=self.problem.X[:n], y=self.problem.y[:n])
        theta = torch.as_tensor(self.theta)
        return Truth(part, theta, self.k)

    # The loss.

    def value(self, theta: np.ndarray) -> float:
        module = self.problem.at(torch.as_tensor(theta)).module
        total = 0.0
        with torch.no_grad():
            for X, y in self._chunks():
                loss = nn.functional.cross_entropy(module(X), y, reduction="sum")
                total += float(loss)
        return total / self.n_examples

    @functools.cached_property
    def loss(self) -> float:
        return self.value(self.theta)

    def rise(self, scale: np.ndarray | float, n_draws: int, absolute: bool) -> Known:
        """Return the mean of L(θ + scale ξ) - L(θ), ξ ~ N(0, I)."""
        rng = np.random.default_rng(SEED)
        rises = [
            self.value(self.theta + scale * rng.standard_normal(self.n_params))
            - self.loss
            for _ in range(n_draws)
        ]
        return _mean(np.abs(rises) if absolute else np.array(rises))

    def batch_sharpness(self, m: int, n_draws: int) -> Known:
        """Return E[gᵀHg/‖g‖²] over batches of m, from draws of its own."""
        rng, theta = np.random.default_rng(SEED), torch.as_tensor(self.theta)
        found = []
        for _ in range(n_draws):
            chosen = rng.choice(self.n_examples, m, replace=False)
            g = self.gradients[chosen].mean(0)
            X, y = self.problem.X[chosen], self.problem.y[chosen]
            point = DoublePoint(replace(self.problem, X=X, y=y), theta)
            found.append(g @ point.hvp(torch.as_tensor(g)).numpy() / (g @ g))
        return _mean(np.array(found))

    def tic(self, rows: np.ndarray, damping: float) -> float:
        """Return Tr((G + δI)⁻¹Σ) of the blocks at some coordinates."""
        B, noise = self.sweep.factors[:, rows], self.noise[:, rows]
        damped = B.T @ B + damping * np.eye(len(rows))
        sigma = noise.T @ noise / self.n_examples
        return float(np.trace(np.linalg.solve(damped, sigma)))

    # Gradients and their covariance.

    @functools.cached_property
    def sweep(self) -> Sweep:
        module, params = self.problem.module, self.problem.params
        kept = min(self.n_examples, EXACT)
        gradients, factors = [], []
        diagonal, fisher_rao = np.zeros(self.n_params), 0.0
        for i, (x, label) in enumerate(
            zip(self.problem.X.split(1), self.problem.y.tolist(), strict=True)
        ):
            with sdpa_kernel(SDPBackend.MATH):
                logits = module(x)[0]
                rows = [
                    flat(torch.autograd.grad(logit, params, retain_graph=True))
                    for logit in logits
                ]
            J = torch.stack(rows).numpy()
            p = logits.detach().softmax(0).numpy()
            residual = p.copy()
            residual[label] -= 1
            gradients.append(residual @ J)
            # S = diag p - ppᵀ = RᵀR with the rows √p_c (e_c - p).
            R = np.sqrt(p)[:, None] * (np.eye(len(p)) - p)
            B = R @ J
            diagonal += (B**2).sum(0)
            fisher_rao += float(((B @ self.theta) ** 2).sum())
            if i < kept:
                factors.append(B)
        return Sweep(
            np.stack(gradients),
            np.concatenate(factors) / kept**0.5,
            diagonal / self.n_examples,
            fisher_rao / self.n_examples,
        )

    @property
    def gradients(self) -> np.ndarray:
        return self.sweep.gradients

    @functools.cached_property
    def gradient(self) -> np.ndarray:
        return self.gradients.mean(0)

    @functools.cached_property
    def noise(self) -> np.ndarray:
        """nᵢ, (N, D)."""
        return self.gradients - self.gradient

    @functools.cached_property
    def variances(self) -> np.ndarray:
        return (self.noise**2).mean(0)

    @functools.cached_property
    def noisy(self) -> np.ndarray:
        """Whether Σⱼⱼ is above what is rounding in float32, the same rule as there."""
        rounding = 10 * np.finfo(np.float32).eps
        return self.variances > rounding**2 * self.variances.max()

    @functools.cached_property
    def _gram_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All eigenpairs of the (N, N) matrix nᵢᵀnⱼ/N, in falling order."""
        values, vectors = np.linalg.eigh(self.noise @ self.noise.T / self.n_examples)
        return values[::-1].clip(min=0), vectors[:, ::-1]

    @property
    def covariance_eigenvalues(self) -> np.ndarray:
        return self._gram_pairs[0]

    @functools.cached_property
    def covariance_eigenvectors(self) -> np.ndarray:
        """The k leading ones, (D, k)."""
        vectors = self.noise.T @ self._gram_pairs[1][:, : self.k]
        return vectors / np.linalg.norm(vectors, axis=0)

    @functools.cached_property
    def covariance_norm(self) -> float:
        return float(np.linalg.norm(self.covariance_eigenvalues))

    # The Hessian.

    @functools.cached_property
    def _points(self) -> list[tuple[float, DoublePoint]]:
        theta = torch.as_tensor(self.theta)
        return [
            (
                len(X) / self.n_examples,
                DoublePoint(replace(self.problem, X=X, y=y), theta),
            )
            for X, y in self._chunks()
        ]

    def hvp(self, v: np.ndarray) -> np.ndarray:
        vector = torch.as_tensor(np.array(v).ravel())
        return sum(w * point.hvp(vector) for w, point in self._points).numpy()

    @functools.cached_property
    def hessian(self) -> np.ndarray | None:
        """All of H, or None where it is too large."""
        if self.n_params > DENSE:
            return None
        H = np.stack([self.hvp(row) for row in np.eye(self.n_params)])
        return (H + H.T) / 2

    @functools.cached_property
    def _all_eigenvalues(self) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(self.hessian)
        return values[::-1], vectors[:, ::-1]

    @functools.cached_property
    def _leading(self) -> tuple[np.ndarray, np.ndarray]:
        if self.hessian is not None:
            values, vectors = self._all_eigenvalues
        else:
            values, vectors = _arpack(self.hvp, self.n_params, self.k + 1)
        return values[: self.k + 1], vectors[:, : self.k + 1]

    @property
    def eigenvalues(self) -> np.ndarray:
        """λ₁ ... λ_{k+1}."""
        return self._leading[0]

    @property
    def eigenvectors(self) -> np.ndarray:
        """The k leading ones, (D, k)."""
        return self._leading[1][:, : self.k].copy()  # torch wants no negative strides

    @functools.cached_property
    def largest_magnitude(self) -> float:
        """max |λ|."""
        if self.hessian is not None:
            return float(np.abs(self._all_eigenvalues[0]).max())
        values, _ = _arpack(self.hvp, self.n_params, 1, which="LM")
        return abs(float(values[0]))

    @functools.cached_property
    def hessian_diagonal(self) -> np.ndarray:
        if self.hessian is not None:
            return np.diag(self.hessian)
        diagonal = self.sweep.ggn_diagonal
        tried = np.random.default_rng(SEED).integers(self.n_params, size=4)
        entries = [self.hvp(np.eye(1, self.n_params, i))[i] for i in tried]
        if not np.allclose(diagonal[tried], entries, rtol=1e-9, atol=1e-12):
            raise ValueError(
                "diag H is not diag G: the network is not what it has to be."
            )
        return diagonal

    @functools.cached_property
    def hessian_norm(self) -> Known:
        if self.hessian is not None:
            return Known(float(np.linalg.norm(self.hessian)))
        rest = []
        for z in self._probes(15):
            product = self.hvp(z - self.eigenvectors @ (self.eigenvectors.T @ z))
            product -= self.eigenvectors @ (self.eigenvectors.T @ product)
            rest.append(product @ product)
        tail = _mean(np.array(rest))
        norm = (float((self.eigenvalues[: self.k] ** 2).sum()) + tail.value) ** 0.5
        return Known(norm, tail.stderr / (2 * norm))

    @functools.cached_property
    def trace_product(self) -> Known:
        """Tr(HΣ)."""
        if self.hessian is not None:
            return Known(
                float((self.noise * (self.noise @ self.hessian)).sum())
                / self.n_examples
            )
        if self.n_examples <= EXACT:
            return Known(sum(n @ self.hvp(n) for n in self.noise) / self.n_examples)
        u = self._gram_pairs[1][:, : self.k]
        rng = np.random.default_rng(SEED)
        rest = []
        for _ in range(30):
            z = rng.standard_normal(self.n_examples)
            drawn = self.noise.T @ (z - u @ (u.T @ z))
            rest.append(drawn @ self.hvp(drawn) / self.n_examples)
        tail = _mean(np.array(rest))
        return Known(self.low_rank_trace_product + tail.value, tail.stderr)

    @functools.cached_property
    def low_rank_trace_product(self) -> float:
        """Σ γₗ vₗᵀHvₗ."""
        curvatures = [v @ self.hvp(v) for v in self.covariance_eigenvectors.T]
        return float(self.covariance_eigenvalues[: self.k] @ curvatures)

    def negative_mass(self, n_probes: int, n_steps: int) -> Known:
        if self.hessian is not None:
            values = self._all_eigenvalues[0]
            return Known(float(-values[values < 0].sum() / np.abs(values).sum()))
        below, total = [], []
        for z in self._probes(n_probes):
            nodes, weights = _quadrature(self.hvp, z, n_steps)
            below.append(weights @ (-nodes).clip(min=0))
            total.append(weights @ np.abs(nodes))
        below, total = np.array(below), np.array(total)
        share = below.mean() / total.mean()
        return Known(share, _mean(below - share * total).stderr / total.mean())

    @functools.cached_property
    def non_uniformity(self) -> float:
        """λ_max((1/N) Σ Hᵢ² - H²)^(1/2), by products with every Hᵢ."""
        theta = torch.as_tensor(self.theta)
        points = [
            DoublePoint(replace(self.problem, X=x, y=y), theta)
            for x, y in zip(
                self.problem.X.split(1), self.problem.y.split(1), strict=True
            )
        ]

        def product(v: np.ndarray) -> np.ndarray:
            vector = torch.as_tensor(v.ravel())
            once = [point.hvp(vector) for point in points]
            mean = sum(once) / len(once)
            # Σ Hᵢ(Hᵢ - H)v/N = (Σ Hᵢ²/N - H²)v without the difference of two squares.
            twice = [p.hvp(u - mean) for p, u in zip(points, once, strict=True)]
            return (sum(twice) / len(twice)).numpy()

        values, _ = _arpack(product, self.n_params, 1)
        return float(values[0]) ** 0.5

    # The generalised Gauss-Newton matrix, of as many examples as B holds.

    @functools.cached_property
    def _factor_pairs(self) -> np.ndarray:
        B = self.sweep.factors
        small = B @ B.T if len(B) < B.shape[1] else B.T @ B
        return np.linalg.eigvalsh(small)[::-1]

    @property
    def ggn_eigenvalues(self) -> np.ndarray:
        return self._factor_pairs

    @property
    def ggn_norm(self) -> float:
        return float(np.linalg.norm(self._factor_pairs))

    @functools.cached_property
    def ggn_trace_product(self) -> float:
        """Tr(GΣ)."""
        return float(((self.noise @ self.sweep.factors.T) ** 2).sum()) / self.n_examples

    def _probes(self, n: int) -> np.ndarray:
        return np.random.default_rng(SEED).standard_normal((n, self.n_params))

    def _chunks(self) -> list[tuple[Tensor, Tensor]]:
        X, y = self.problem.X.split(CHUNK), self.problem.y.split(CHUNK)
        return list(zip(X, y, strict=True))


def _mean(values: np.ndarray) -> Known:
    return Known(float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5)


def _arpack(
    product: Callable[[np.ndarray], np.ndarray], size: int, k: int, which: str = "LA"
) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = eigsh(
        LinearOperator((size, size), matvec=product, dtype=np.float64),
        k,
        which=which,
        tol=1e-4,  # of the residual; the error of a value is of its square's order
        v0=np.random.default_rng(SEED).standard_normal(size),
    )
    return values[::-1], vectors[:, ::-1]


def _quadrature(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, n_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of Lanczos from one vector, fully reorthogonalised."""
    basis = [start / np.linalg.norm(start)]
    T = np.zeros((n_steps, n_steps))
    for j in range(n_steps):
        w = product(basis[-1])
        T[j, j] = w @ basis[-1]
        for _ in range(2):
            for q in basis:
                w = w - (q @ w) * q
        if j + 1 < n_steps:
            T[j, j + 1] = T[j + 1, j] = np.linalg.norm(w)
            basis.append(w / T[j, j + 1])
    nodes, vectors = np.linalg.eigh(T)
    return nodes, vectors[0] ** 2
