"""
Five hundred draws of each noise law
====================================

Each panel shows the same quadratic bowl and the gradient noise ε that one law draws at
the same point. The bowl is the loss of a linear regression with two parameters and 200
examples, four times as curved in one direction as in the other. Crosses are draws; the
ellipse holds 95 % of a Gaussian with the law's covariance C.

Most laws are of the size of SGD's noise, Tr(C) = Tr(Σ)/m. What differs is the shape.
"""

# %%
# The problem. The two inputs are correlated, so the bowl is tilted, and neither axis is
# a direction of its own.
import matplotlib.pyplot as plt
import numpy as np
import torch

from flatmin.noise import make_noise_law
from flatmin.risk import LinearRegressionRisk

BATCH_SIZE, N_DRAWS = 20, 500

rng = torch.Generator().manual_seed(0)
mix = torch.tensor([[1.0, 0.6], [0.0, 0.5]], dtype=torch.float64)
X = torch.randn(200, 2, generator=rng, dtype=torch.float64) @ mix
y = 0.5 * torch.randn(200, generator=rng, dtype=torch.float64)
risk = LinearRegressionRisk(X, y)
theta = torch.tensor([0.6, -0.4], dtype=torch.float64)


# %%
# A law is used as in any loop: ``refresh`` measures what it needs at θ, and
# ``noisy_gradient`` returns the loss and g₀ + ε. θ may hold many copies at once.
def draw(method, **settings):
    """Return N_DRAWS draws of ε at θ, of shape (N_DRAWS, 2), and C or None."""
    law = make_noise_law(method, **settings)
    law.check(risk)
    state = law.refresh(risk, theta, rng)
    gradient = risk.gradient(theta)
    draws = [law.noisy_gradient(risk, theta, state, rng)[1] for _ in range(N_DRAWS)]
    if method == "alpha_stable":  # its second moment is infinite
        return torch.stack(draws) - gradient, None
    covariance = law.covariance(risk, theta, state).to_dense()
    return torch.stack(draws) - gradient, covariance


# %%
# The laws, and the settings without which they would not fit two parameters.
one = {"batch_size": BATCH_SIZE, "n_components": 1}
LAWS = {
    "sgd": {"batch_size": BATCH_SIZE},
    "gld_full": {"batch_size": BATCH_SIZE},
    "gld_leading": one,
    "gld_diagonal": {"batch_size": BATCH_SIZE},
    "gld_dynamic": {"batch_size": BATCH_SIZE},
    "gld_const": {"sigma": 0.1},
    "gld_hessian": one,
    "gld_first_eigenvector": {"batch_size": BATCH_SIZE},
    "gld_ggn": {"batch_size": BATCH_SIZE},
    "gld_fisher": {"batch_size": BATCH_SIZE},
    "bernoulli": {"batch_size": BATCH_SIZE},
    "alpha_stable": {"batch_size": BATCH_SIZE, "alpha": 1.5},
}


def ellipse(covariance, probability=0.95):
    """Return the curve that holds a share of N(0, C), of shape (2, 100)."""
    angles = np.linspace(0, 2 * np.pi, 100)
    values, vectors = np.linalg.eigh(covariance)
    radius = np.sqrt(-2 * np.log(1 - probability))  # of a chi-squared with two
    lengths = radius * np.sqrt(values.clip(0))
    return vectors @ (lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)]))


grid = np.linspace(-1, 1, 60)
points = torch.tensor(np.stack(np.meshgrid(grid, grid), -1))
bowl = 0.5 * torch.einsum("xyi,ij,xyj->xy", points, risk.hessian(theta), points)
levels = bowl.max().item() * np.linspace(0.05, 1, 8) ** 2

figure, panels = plt.subplots(3, 4, figsize=(10, 7.5), sharex=True, sharey=True)
for panel, (method, settings) in zip(panels.flat, LAWS.items(), strict=True):
    noise, covariance = draw(method, **settings)
    panel.contour(grid, grid, bowl, levels=levels, colors="0.8", linewidths=0.8)
    panel.plot(*noise.T, "x", markersize=3, alpha=0.5)
    if covariance is not None:
        panel.plot(*ellipse(covariance.numpy()), color="C3", linewidth=1.5)
    panel.set(title=method, xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
figure.supxlabel("first coordinate of ε")
figure.supylabel("second coordinate of ε")
figure.tight_layout()
plt.show()
