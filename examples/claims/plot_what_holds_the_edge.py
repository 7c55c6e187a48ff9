"""
What holds the curvature of SGD below the edge of stability?
============================================================

Gradient descent on a squared error raises λ₁ until S = λ₁η/2 hovers at 1. SGD at the
same rate stays below. Is it the covariance of its noise, its size, the part of it along
the sharpest direction, or the curvature of minibatches?

The inequalities below were written before any of their numbers, and the seeds are none
of a pilot's. An inequality is *supported* where the paired 95 % t interval over seeds
lies within its bounds, *refuted* where it lies wholly outside, else *neither*. A run
that diverges is an outcome: its S is infinite, the pair is left out of the interval,
and the table counts it. All of this is on small networks.

Without ``--full`` a short version shows in less than two minutes that all works; it
says nothing about the claim. ``--full --output FILE.json`` keeps every unit, a law with
a seed, in a file of its own, and a second call goes on where the first stopped.
"""

# %%
from dataclasses import replace

import numpy as np
from _claim import Claim, Inequality, Source
from _problems import SECOND_SEEDS, fashion
from _trial import Trial, main
from sklearn.datasets import load_digits
from torch import nn

from flatmin import NoisyDiffusionRegressor
from flatmin.measures import batch_sharpness, edge_of_stability

CLAIM = Claim(
    title="What holds λ₁ below 2/η?",
    says="Not λ₁ but the curvature of minibatches along their own gradients reaches "
    "2/η under SGD; and noise along the sharpest direction alone makes the gap.",
    sources=(
        Source("A. Andreyev, P. Beneventano, arXiv 2412.20553", "abstract"),
        Source("F. Liao, J. Kolomvaki, A. Kyrillidis, arXiv 2604.21016", "abstract"),
    ),
    inequalities=(
        Inequality("covariance is enough", "gld_full", "sgd", -0.05, 0.05),
        Inequality("size is not enough", "gld_dynamic", "gd", -0.05),
        Inequality("noise along u₁ is enough", "u₁ alone", "sgd", -0.05, 0.05),
        Inequality("batch sharpness × η/2 reaches 1", "sgd, batch", "0", 0.9, 1.1),
    ),
    seeds=tuple(range(20, 28)),
    tuned_on=tuple(range(18)),
    protocol="500 digits, squared error, tanh 64-32-32-10 with PyTorch's "
    "initialisation times 0.5, float64, η = 1, m = 16, 4000 iterations: in a pilot S "
    "stood still from 2000 on; means over the last third. u₁ is renewed every 50 "
    "iterations. A seed draws initialisation and noise, shared by all laws.",
    objection="Both papers use squared error, and say that slow settings never reach "
    "the edge.",
    would_change="Another m or η at which the late S of a law moves by more than 0.05; "
    "cross-entropy, whose curvature falls with the loss.",
)
LR, M = 1.0, 16
TOP = {"n_components": 1, "refresh_every": 50}
# Label -> the law and its settings. The last is told, and in no inequality.
LAWS = {
    "gd": ("gd", None),
    "sgd": ("sgd", None),
    "gld_full": ("gld_full", None),
    "gld_dynamic": ("gld_dynamic", None),
    "u₁ alone": ("projected", TOP),
    "all but u₁": ("projected", TOP | {"keep": "bulk"}),
}
FULL = {"n_train": 500, "n_iter": 4000, "record_every": 200, "n_draws": 20}
SHORT = {"n_train": 60, "n_iter": 30, "record_every": 10, "n_draws": 3}


# %%
# A unit
# ------


def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16 - 0.3) / 0.37, y


DATA = {"digits": digits, "fashion_mnist": fashion}


def make_network(n_features):
    layers = nn.Linear(n_features, 32), nn.Linear(32, 32), nn.Linear(32, 10)
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.mul_(0.5)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def run_unit(label, seed, settings):
    """Return S and batch sharpness × η/2 over training, and their late means."""
    X, y = DATA[settings.get("data", "digits")]()
    X = X[: settings["n_train"]]
    method, params = LAWS[label]

    def of_batches(risk, theta):
        found = batch_sharpness(risk, theta, batch_size=M, n_draws=settings["n_draws"])
        return float(found) * LR / 2

    model = NoisyDiffusionRegressor(
        make_network,
        module_params={"n_features": X.shape[1]},
        method=method,
        method_params=params,
        lr=LR,
        batch_size=M,
        max_iter=settings["n_iter"],
        record_every=settings["record_every"],
        dtype="float64",
        random_state=seed,
        on_divergence="stop",
        metrics={
            "S": lambda risk, theta: edge_of_stability(risk, theta, lr=LR, tol=1e-3),
            "batch": of_batches,
        },
    ).fit(X, np.eye(10)[y[: settings["n_train"]]])
    history = model.history_
    late = history.query("iteration > @model.max_iter * 2 / 3")
    diverged = bool(model.diverged_)
    return {
        "diverged": diverged,
        "S": np.inf if diverged else float(late["S"].mean()),
        "batch": np.inf if diverged else float(late["batch"].mean()),
        "iteration": history["iteration"].tolist(),
        "S over training": history["S"].tolist(),
    }


# %%
# The numbers that are compared, and the picture
# ----------------------------------------------


def outcomes(units):
    late = {label: unit["S"] for label, unit in units.items()}
    return late | {f"{label}, batch": unit["batch"] for label, unit in units.items()}


def draw(axes, units, outcomes):
    seed = min(seed for _, seed in units)
    for label in LAWS:
        unit = units[label, seed]
        axes.plot(unit["iteration"], unit["S over training"], label=label, lw=1)
    axes.axhline(1, color="k", ls=":")
    axes.set(xlabel="iteration", ylabel="S = λ₁η/2", title=f"One seed ({seed})")
    axes.legend(fontsize=8)


FINDINGS = (
    "Late in a training S is 1.00 under gradient descent, 0.98 with isotropic noise "
    "of SGD's size, 0.62 under SGD and 0.64 with Gaussian noise of its covariance: "
    "the shape holds λ₁ down, and an interval of 0.04 each way leaves open whether "
    "the last 0.05 needs more. Noise along u₁ alone comes to 0.78, 0.16 (0.14 to "
    "0.19) above SGD, and noise outside of u₁ to 0.80: neither part is enough. "
    "Batch sharpness × η/2 is 0.40 under SGD and does not come near 1.",
    "The same, and more so: S is 1.04 under gradient descent, 1.03 with isotropic "
    "noise of SGD's size, 0.64 under SGD and 0.64 with Gaussian noise of its "
    "covariance (an interval of 0.05 each way). Noise along u₁ alone comes to 0.93, "
    "0.29 (0.265 to 0.31) above SGD, and noise outside of u₁ to 0.95: each alone holds "
    "hardly anything. Batch sharpness × η/2 is 0.52 under SGD.",
)
TRIAL = Trial(CLAIM, tuple(LAWS), run_unit, outcomes, draw, FULL, SHORT)


# %%
# On a second data set and network
# --------------------------------
# The same inequalities, and the same settings: at this η seed 0 comes to the edge.

ELSEWHERE = {"data": "fashion_mnist"}
SECOND = Trial(
    replace(
        CLAIM,
        title="What holds λ₁ below 2/η on Fashion-MNIST?",
        seeds=SECOND_SEEDS,
        protocol="As before, with 500 images of Fashion-MNIST of 14 x 14 pixels and "
        "tanh 196-32-32-10.",
    ),
    tuple(LAWS),
    run_unit,
    outcomes,
    draw,
    FULL | ELSEWHERE,
    SHORT | ELSEWHERE,
)

if __name__ == "__main__":
    main(TRIAL, SECOND)
