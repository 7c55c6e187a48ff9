"""The covariances of the laws in dense float64, written without flatmin.

Formulas as in the table of the design. They read a law's settings and nothing else of
it; what a refresh draws is drawn again from a generator in the state it had before.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.func import functional_call, jacrev, vmap

RATE = 0.1  # η, where a law is told it


def hessian(function):
    return jacrev(jacrev(function))  # torch's own uses forward mode and warns


@dataclass(frozen=True)
class Point:
    """All that the formulas need of a risk at one θ."""

    losses: torch.Tensor  # (N,) ℓ̃ᵢ
    gradients: torch.Tensor  # (N, D) gᵢ
    hessian: torch.Tensor  # (D, D) H
    gauss_newton: torch.Tensor  # (D, D) G
    labels: object = None  # law -> (D, D) covariance that new labels give, (D,) bias
    norms: object = None  # m -> (D,) gradient of E‖g_B‖², with m = inf of ‖g₀‖²
    penalty: float = 0.0  # (λ/2)‖θ‖²
    pull: float | torch.Tensor = 0.0  # (D,) λθ

    @property
    def value(self):
        return self.losses.mean() + self.penalty

    @cached_property
    def mean(self):
        return self.gradients.mean(0) + self.pull

    @cached_property
    def covariance(self):
        centred = self.gradients - self.gradients.mean(0)
        return centred.T @ centred / len(self.gradients)

    @property
    def sgd_trace(self):
        return self.covariance.trace()


def point(losses, gauss_newton, theta, labels=None, l2=0.0):
    """Differentiate ``losses(theta)``, the vector of the ℓ̃ᵢ; λ of a penalty beside."""
    theta = theta.double()
    curved = l2 * torch.eye(len(theta), dtype=theta.dtype)

    def norms(m):
        def square(t):
            rows = jacrev(losses)(t)
            spread = (rows - rows.mean(0)).square().sum(1).mean() / m
            return (rows.mean(0) + l2 * t).square().sum() + spread

        return jacrev(square)(theta)

    return Point(
        losses(theta),
        jacrev(losses)(theta),
        hessian(lambda t: losses(t).mean())(theta) + curved,
        gauss_newton(theta) + curved,
        None if labels is None else (lambda law: labels(theta, law)),
        norms,
        l2 / 2 * theta.square().sum(),
        l2 * theta,
    )


# -- the network ----------------------------------------------------------------------


def cross_entropy(f, y):  # y one-hot
    return -(y * f.log_softmax(0)).sum()


def squared_error(f, y):
    return ((f - y) ** 2).mean()


def binary_cross_entropy(f, y):
    return (torch.nn.functional.softplus(f) - y * f).mean()


def cross_entropy_root(f):
    p = f.softmax(0)
    return p.sqrt().diag() - torch.outer(p, p.sqrt())


def squared_error_root(f):
    return torch.eye(len(f), dtype=f.dtype) * (2 / len(f)) ** 0.5


def binary_cross_entropy_root(f):
    p = f.sigmoid()
    return (p * (1 - p) / len(f)).sqrt().diag()


@dataclass(frozen=True)
class Network:
    """A module with the loss of one example, for examples of weight wᵢ."""

    module: torch.nn.Module
    loss: object  # (f, y) -> ()
    X: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor  # (N,) any scale
    l2: float = 0.0  # λ

    @property
    def scales(self):
        """N wᵢ / Σ w."""
        return self.weights * (len(self.weights) / self.weights.sum())

    def outputs(self, theta):
        parameters, start = {}, 0
        for name, parameter in self.module.named_parameters():
            flat = theta[start : start + parameter.numel()]
            parameters[name] = flat.view(parameter.shape)
            start += parameter.numel()
        return functional_call(self.module, parameters, (self.X,))

    def losses(self, theta):
        return self.scales * vmap(self.loss)(self.outputs(theta), self.y)

    def jacobians(self, theta):
        return jacrev(self.outputs)(theta)  # (N, C, D)

    def gauss_newton(self, theta):
        J = self.jacobians(theta)
        inner = vmap(hessian(self.loss))(self.outputs(theta), self.y)
        inner = self.scales[:, None, None] * inner
        return torch.einsum("ncd,nce,nef->df", J, inner, J) / len(self.X)

    def new_labels(self, theta, law):
        """Return the covariance, and the mean where not centred, of new labels' noise.

        Every label that may be drawn is tried.
        """
        J, outputs = self.jacobians(theta), self.outputs(theta)
        size = J.shape[-1]
        covariance = torch.zeros(size, size, dtype=J.dtype)
        bias = torch.zeros(size, dtype=J.dtype)
        slope = jacrev(self.loss)
        for i, (f, y) in enumerate(zip(outputs, self.y, strict=True)):
            new, probabilities = possible_labels(self.loss, y, law)
            slopes = torch.stack([slope(f, label) for label in new]) * self.scales[i]
            mean = probabilities @ slopes
            rows = (slopes - mean) @ J[i]
            covariance += rows.T @ (probabilities[:, None] * rows)
            bias += (mean - slope(f, y) * self.scales[i]) @ J[i]
        n = len(self.X)
        return covariance / n**2, bias / n

    def at(self, theta):
        parts = self.losses, self.gauss_newton, theta, self.new_labels
        return point(*parts, l2=self.l2)


def possible_labels(loss, y, law):
    """Return labels and their probabilities; for a normal one 2C of equal moments."""
    p = law.flip_probability
    if loss is squared_error:
        steps = law.sigma * len(y) ** 0.5 * torch.eye(len(y), dtype=y.dtype)
        steps = torch.cat([steps, -steps])
        return y + steps, torch.full((len(steps),), 1 / len(steps), dtype=y.dtype)
    if loss is binary_cross_entropy:  # of one output
        return torch.stack([y, 1 - y]), torch.tensor([1 - p, p], dtype=y.dtype)
    q = (1 - p) * y + p / (len(y) - 1) * (1 - y)
    return torch.eye(len(y), dtype=y.dtype), q


# -- the laws -------------------------------------------------------------------------


def by_magnitude(matrix, k):
    """Return the k eigenpairs of largest |λ|, the largest first."""
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)[:k]
    return values[order], vectors[:, order]


def rebuild(values, vectors):
    return vectors @ values.diag() @ vectors.T


def with_trace(matrix, trace):
    return matrix * (trace / matrix.trace())


def isotropic(point, variance):
    return variance * torch.eye(len(point.mean), dtype=torch.float64)


def sgd(p, law, _):
    n, m = len(p.gradients), law.batch_size
    finite = 1 if law.sampling == "replacement" else (n - m) / (n - 1)
    return finite * p.covariance / m


def leading(p, law, order):
    n, m, k = len(p.gradients), law.batch_size, law.n_components
    if law.source == "examples":
        estimate = p.covariance
    else:
        b = n // m
        batches = p.gradients[order[: b * m]].view(b, m, -1).mean(1)
        estimate = m * torch.cov(batches.T, correction=1)
    values, vectors = torch.linalg.eigh(estimate)
    return rebuild(values[-k:], vectors[:, -k:]) / m


def leading_hessian(p, law, _):
    k = len(p.mean) if law.n_components == "full" else law.n_components
    values, vectors = by_magnitude(p.hessian, k)
    C = rebuild(values.abs(), vectors)
    if law.match == "hessian_trace":
        return p.sgd_trace / (law.batch_size * p.hessian.trace()) * C
    return C


def first_eigenvector(p, law, _):
    values, vectors = torch.linalg.eigh(p.hessian)
    u = vectors[:, -1]
    return values[-1].abs() * torch.outer(u, u)


def random_subspace(p, law, directions):
    values, _ = by_magnitude(p.hessian, law.n_components)
    return rebuild(values.abs(), directions)


def shuffled(p, law, _):
    values, vectors = by_magnitude(p.hessian, law.n_components)
    return rebuild(values.abs().flip(0), vectors)


def bernoulli(p, law, _):
    """Return the covariance of (1/m) Σ bᵢgᵢ: each coin has the variance q(1 - q)."""
    n, m = len(p.gradients), law.batch_size
    q = m / n
    return q * (1 - q) / m**2 * p.gradients.T @ p.gradients


def projected(p, law, _):
    """Return P Σ/m P: the law inside is gld_full."""
    top = torch.linalg.eigh(p.hessian).eigenvectors[:, -law.n_components :]
    P = top @ top.T
    if law.keep == "bulk":
        P = torch.eye(len(P), dtype=P.dtype) - P
    return P @ p.covariance @ P / law.batch_size


# At noise_scale=1 and match="none". A function of a Point, the law and what a refresh
# draws.
FORMULAS = {
    "gd": lambda p, law, _: isotropic(p, 0.0),
    "sgd": sgd,
    "gld_const": lambda p, law, _: isotropic(
        p, (1e-3 if law.sigma is None else law.sigma) ** 2
    ),
    "gld_dynamic": lambda p, law, _: isotropic(
        p, p.sgd_trace / (law.batch_size * len(p.mean))
    ),
    "gld_diagonal": lambda p, law, _: p.covariance.diag().diag() / law.batch_size,
    "gld_leading": leading,
    "gld_hessian": leading_hessian,
    "gld_first_eigenvector": first_eigenvector,
    "gld_full": lambda p, law, _: p.covariance / law.batch_size,
    "gld_fisher": lambda p, law, _: (
        p.gradients.T @ p.gradients / len(p.gradients) / law.batch_size
    ),
    "gld_ggn": lambda p, law, _: p.gauss_newton,
    "gld_random_subspace": random_subspace,
    "gld_shuffled": shuffled,
    "projected": projected,
    "svag": lambda p, law, _: law.n_substeps * p.covariance / law.batch_size,
    "bernoulli": bernoulli,
    # Of one step; "none" is 2 (σ/η)² I, at the η of the tests.
    "anti_pgd": lambda p, law, _: isotropic(p, 2 * (law.sigma / RATE) ** 2),
    # With alpha = 2.
    "alpha_stable": lambda p, law, _: isotropic(p, law.sigma**2),
    "label_noise": lambda p, law, _: p.labels(law)[0],
    "sam": lambda p, law, _: isotropic(p, 0.0),
    "gradient_penalty": lambda p, law, _: isotropic(p, 0.0),
}


def matched(C, p, law):
    """Return C at the size that ``match`` asks for."""
    match = getattr(law, "match", "none")
    if match == "trace":
        return with_trace(C, p.sgd_trace / law.batch_size)
    if match == "frobenius":
        return C * (p.covariance.norm() / law.batch_size / C.norm())
    if match == "curvature":
        target = (p.hessian @ p.covariance).trace() / law.batch_size
        return C * (target / (p.hessian @ C).trace())
    return C


def permutations(law, n, shape, rng):
    return torch.rand((*shape[:-1], n), generator=rng).argsort(-1)


def frames(law, n, shape, rng):
    k = law.n_components
    gaussian = torch.randn((*shape, k), generator=rng, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


DRAWS = {"gld_leading": permutations, "gld_random_subspace": frames}


def dense_covariance(law, points, shape, rng):
    """Return C of all chains.

    Parameters
    ----------
    law : a law at noise_scale=1, with every number set
    points : list of Point, one a chain
    shape : (*chains, D), of θ
    rng : torch.Generator as it was before the refresh

    Returns
    -------
    Tensor of shape (*chains, D, D)
    """
    drawn = [None] * len(points)
    if law.name in DRAWS:
        everything = DRAWS[law.name](law, len(points[0].losses), shape, rng)
        drawn = (
            everything.flatten(0, len(shape) - 2) if len(shape) > 1 else [everything]
        )
    formula = FORMULAS[law.name]
    C = [
        matched(formula(p, law, d), p, law) for p, d in zip(points, drawn, strict=True)
    ]
    return torch.stack(C).view(*shape, shape[-1])
