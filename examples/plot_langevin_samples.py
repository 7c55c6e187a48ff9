"""
Sample a posterior by Langevin dynamics, and see its bias
=========================================================

``gld_const`` at a temperature T adds noise of variance 2Tη/N to each parameter in every
step. As η → 0 the chain samples the density ∝ exp(-N L(θ)/T). For squared error with
noise of variance s² in the targets that is the posterior where T = 2 s². At a finite η
the chain is another one: on a quadratic loss with Hessian H its covariance is
(T/N) H⁻¹ (I - ηH/2)⁻¹ in the place of (T/N) H⁻¹.

Left: the variance of many chains in the sharpest direction of a linear regression, over
the posterior's. Rule: at every η all three, mean, variance and covariance, are within 4
standard errors of the formula; and at ηλ₁ = 1 the variance is off the posterior's by
more than 10. Middle: the chains at the largest η. Right: a network on cubic data. The
points that one chain keeps (``keep_params_every``) are averaged by ``predict``.

    python examples/plot_langevin_samples.py [--full] [--output DIR]
"""

# %%
import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from flatmin import NoisyDiffusionRegressor
from flatmin.datasets import make_cubic_regression
from flatmin.dynamics import simulate
from flatmin.noise import GLDConst
from flatmin.risk import LinearRegressionRisk

sys.path.append(str(Path(__file__).parent / "paper"))
from _record import provenance  # what a stored result says of its origin

FULL = {"n_chains": 20_000, "max_iter": 40_000, "every": 40, "warmup": 4000}
SHORT = {"n_chains": 2000, "max_iter": 600, "every": 20, "warmup": 200}
SHARES = (0.1, 0.4, 0.7, 1.0, 1.3, 1.6)  # of ηλ₁; the chain is stable below 2
TEMPERATURE, N = 1.0, 20

# %%
# A linear regression in two unknowns: everything is known in closed form.


def regression():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(N, 2, generator=rng, dtype=torch.float64)
    X = X @ torch.tensor([[1.0, 0.6], [0.0, 0.5]], dtype=torch.float64)
    y = X.sum(1) + torch.randn(N, generator=rng, dtype=torch.float64)
    return LinearRegressionRisk(X, y)


def formulas(risk, lr):
    """Return mean and covariance of the discrete chain, and of the posterior."""
    H = risk.hessian(torch.zeros(2, dtype=torch.float64))
    mean = torch.linalg.lstsq(risk.X, risk.y[:, None]).solution[:, 0]
    eye = torch.eye(2, dtype=torch.float64)
    posterior = TEMPERATURE / N * torch.linalg.inv(H)
    return mean, posterior @ torch.linalg.inv(eye - lr * H / 2), posterior


def chains(risk, share, n_chains):
    """Return the last points of many chains, and η."""
    H = risk.hessian(torch.zeros(2, dtype=torch.float64))
    smallest, largest = torch.linalg.eigvalsh(H).tolist()
    lr = share / largest
    n_iter = int(8 / (lr * smallest)) + 1  # e⁻⁸ of the start is left
    start = formulas(risk, lr)[0]
    law = GLDConst(temperature=TEMPERATURE)
    run = simulate(risk, law, start, lr=lr, n_iter=n_iter, n_chains=n_chains)
    return run["gld_const"].theta, lr


# %%
# Means, variances and the covariance along the eigenvectors of H, with standard errors.


def compare(risk, share, n_chains):
    theta, lr = chains(risk, share, n_chains)
    mean, discrete, posterior = formulas(risk, lr)
    H = risk.hessian(mean)
    U = torch.linalg.eigh(H).eigenvectors.flip(1)  # the sharpest direction first
    z = (theta - mean) @ U
    expected, target = (U.T @ C @ U for C in (discrete, posterior))
    found = z.T @ z / n_chains
    variances = expected.diag()
    error = ((variances[:, None] * variances + expected**2) / n_chains).sqrt()
    scores = torch.cat(
        [
            z.mean(0) / (variances / n_chains).sqrt(),
            ((found - expected) / error)[[0, 1, 0], [0, 1, 1]],
        ]
    )
    return {
        "share": share,
        "lr": lr,
        "ratio": float(found[0, 0] / target[0, 0]),
        "ratio_stderr": float(error[0, 0] / target[0, 0]),
        "formula": float(expected[0, 0] / target[0, 0]),
        "largest_score": float(scores.abs().max()),
        "off_posterior": float((found[0, 0] - target[0, 0]) / error[0, 0]),
    }


# %%
# A network, on a cubic with noise of standard deviation s in its targets and a gap in
# its inputs. The prior is N(0, 1) for each parameter: ``weight_decay`` λ is the prior
# N(0, T/(Nλ)).


def network(sizes):
    X, y = make_cubic_regression(32)
    s, outside = 0.05, np.abs(X[:, 0]) > 0.35
    X, y = X[outside], y[outside]
    y = y + s * np.random.default_rng(0).normal(size=len(y))
    temperature = 2 * s**2
    reg = NoisyDiffusionRegressor(
        module_params={"hidden_layer_sizes": 20, "activation": "tanh"},
        method="gld_const",
        method_params={"temperature": temperature},
        optimizer_params={"weight_decay": temperature / len(X)},
        lr=0.05,
        max_iter=sizes["max_iter"],
        record_every=sizes["max_iter"],
        keep_params_every=sizes["every"],
        warmup={"max_iter": sizes["warmup"], "lr": 0.05},
        dtype="float64",
        random_state=0,
    ).fit(X, y)
    grid = np.linspace(-1.5, 1.5, 91)[:, None]
    points = reg.trajectory_.params[len(reg.trajectory_) // 5 :]
    rows = np.stack([reg.predict(grid, params=point) for point in points])
    mean = reg.predict(grid, params=points)
    return {
        "x": X[:, 0].tolist(),
        "y": y.tolist(),
        "grid": grid[:, 0].tolist(),
        "mean": mean.tolist(),
        "sd": rows.std(0).tolist(),
        "n_points": len(points),
    }


# %%
# The picture.


def ellipse(mean, covariance, n_points=100):
    """Return the points at 2 standard deviations."""
    angle = np.linspace(0, 2 * np.pi, n_points)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return mean.numpy()[:, None] + 2 * np.linalg.cholesky(covariance.numpy()) @ circle


def draw(risk, result, n_shown=600):
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    table = result["regression"]
    shares = [row["share"] for row in table]
    fine = np.linspace(0, 1.7, 100)
    axes[0].plot(fine, 1 / (1 - fine / 2), color="black", label="1/(1 - ηλ₁/2)")
    axes[0].axhline(1, color="#0072b2", linestyle="--", label="posterior")
    axes[0].errorbar(
        shares,
        [row["ratio"] for row in table],
        [2 * row["ratio_stderr"] for row in table],
        fmt="o",
        markersize=4,
        color="#d55e00",
        label="chains, ± 2 s.e.",
    )
    axes[0].set(xlabel="ηλ₁", ylabel="variance over the posterior's")
    theta, lr = chains(risk, SHARES[-1], n_shown)
    mean, discrete, posterior = formulas(risk, lr)
    axes[1].plot(*theta.T, ".", markersize=2, color="#e8a06a", label="chains")
    axes[1].plot(*ellipse(mean, discrete), color="black", label="formula, 2 s.d.")
    axes[1].plot(*ellipse(mean, posterior), "--", color="#0072b2", label="posterior")
    axes[1].set(xlabel="θ₁", ylabel="θ₂", title=f"ηλ₁ = {SHARES[-1]}")
    net = {name: np.array(held) for name, held in result["network"].items()}
    band = (net["mean"] - 2 * net["sd"], net["mean"] + 2 * net["sd"])
    axes[2].fill_between(
        net["grid"],
        *band,
        color="#56b4e9",
        alpha=0.4,
        label="points of a chain, ± 2 s.d.",
    )
    axes[2].plot(net["grid"], net["mean"], color="#0072b2", label="their mean")
    axes[2].plot(net["x"], net["y"], "k.", label="data")
    axes[2].set(xlabel="x", ylabel="y")
    for ax in axes:
        ax.legend(frameon=False, fontsize="small")
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--full", action="store_true", help="two minutes")
    parser.add_argument("--output", type=Path, default=Path("langevin-output"))
    options = parser.parse_args(arguments)
    sizes = FULL if options.full else SHORT
    risk = regression()
    table = [compare(risk, share, sizes["n_chains"]) for share in SHARES]
    result = {"seed": 0, "regression": table, "network": network(sizes)}
    at_one = next(row for row in table if row["share"] == 1.0)
    result["holds"] = all(row["largest_score"] < 4 for row in table)
    result["bias_is_seen"] = at_one["off_posterior"] > 10
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(provenance() | result)
    (options.output / "langevin.json").write_text(text + "\n")
    draw(risk, result).savefig(options.output / "langevin.png", dpi=150)
    for row in table:
        print(
            f"ηλ₁ = {row['share']:.1f}: variance {row['ratio']:.3f} ± "
            f"{row['ratio_stderr']:.3f} of the posterior's, by formula "
            f"{row['formula']:.3f}"
        )
    print("the formula holds:", result["holds"])
    return result


if __name__ == "__main__":
    main()
