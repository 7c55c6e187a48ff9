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
says nothing about the claim. ``--full --output FOLDER`` keeps every unit, a law with a
seed, in a file of its own, and a second call goes on where the first stopped.
"""

# %%
import argparse
import json
from pathlib import Path

import numpy as np
from _claim import Claim, Inequality, Source
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
    "initialisation times 0.5, float64, η = 1, m = 16, 12,000 iterations; means over "
    "the last third. A seed draws initialisation and noise, shared by all laws.",
    objection="Both papers use squared error, and say that slow settings never reach "
    "the edge.",
    would_change="Another m or η at which the late S of a law moves by more than 0.05; "
    "cross-entropy, whose curvature falls with the loss.",
)
LR, M = 1.0, 16
# Label -> the law and its settings. The last is told, and in no inequality.
LAWS = {
    "gd": ("gd", None),
    "sgd": ("sgd", None),
    "gld_full": ("gld_full", None),
    "gld_dynamic": ("gld_dynamic", None),
    "u₁ alone": ("projected", {"n_components": 1}),
    "all but u₁": ("projected", {"n_components": 1, "keep": "bulk"}),
}
FULL = {"n_train": 500, "n_iter": 12_000, "record_every": 200, "n_draws": 50}
SHORT = {"n_train": 60, "n_iter": 30, "record_every": 10, "n_draws": 3}


# %%
# A unit
# ------


def make_network():
    layers = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.mul_(0.5)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def run_unit(label, seed, sizes):
    """Return the late S of a law with a seed, and the late batch sharpness × η/2."""
    X, y = load_digits(return_X_y=True)
    X, y = ((X / 16 - 0.3) / 0.37)[: sizes["n_train"]], y[: sizes["n_train"]]
    method, params = LAWS[label]

    def of_batches(risk, theta):
        found = batch_sharpness(risk, theta, batch_size=M, n_draws=sizes["n_draws"])
        return float(found) * LR / 2

    model = NoisyDiffusionRegressor(
        make_network,
        method=method,
        method_params=params,
        lr=LR,
        batch_size=M,
        max_iter=sizes["n_iter"],
        record_every=sizes["record_every"],
        dtype="float64",
        random_state=seed,
        on_divergence="stop",
        metrics={
            "S": lambda risk, theta: edge_of_stability(risk, theta, lr=LR, tol=1e-3),
            "batch": of_batches,
        },
    ).fit(X, np.eye(10)[y])
    late = model.history_.query("iteration > @model.max_iter * 2 / 3")
    diverged = bool(model.diverged_)
    return {
        "law": label,
        "seed": seed,
        "diverged": diverged,
        "S": np.inf if diverged else float(late["S"].mean()),
        "batch": np.inf if diverged else float(late["batch"].mean()),
    }


def unit(label, seed, sizes, folder):
    """Return a unit, from its file if it is there."""
    if folder is None:
        return run_unit(label, seed, sizes)
    name = label.replace(" ", "_").replace("₁", "1")
    path = folder / f"{name}-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(run_unit(label, seed, sizes)))
    return json.loads(path.read_text())


# %%
# The verdict
# -----------


def judged(units, seeds):
    """Return a line an inequality: what it says, verdict, mean and interval."""
    values = {(u["law"], u["seed"]): u["S"] for u in units}
    values |= {(f"{u['law']}, batch", u["seed"]): u["batch"] for u in units}
    lines = []
    for inequality in CLAIM.inequalities:
        left = [values[inequality.left, seed] for seed in seeds]
        right = None
        if inequality.right != "0":
            right = [values[inequality.right, seed] for seed in seeds]
        verdict, found = inequality.judge(left, right)
        lines.append(
            f"{inequality.says}: {verdict}, {found.mean:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}], n = {found.n}"
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=CLAIM.title)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--output", type=Path, help="a folder for the units")
    arguments, _ = parser.parse_known_args()
    sizes, seeds = (FULL, CLAIM.seeds) if arguments.full else (SHORT, (0, 1))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    units = [unit(law, s, sizes, arguments.output) for s in seeds for law in LAWS]
    for law in LAWS:
        own = [u for u in units if u["law"] == law]
        lost = sum(u["diverged"] for u in own)
        late = np.mean([u["S"] for u in own if not u["diverged"]] or [np.inf])
        print(f"{law}: late λ₁η/2 {late:.3f}, {lost} of {len(own)} diverged")
    print(*(judged(units, seeds) if arguments.full else ["(no verdict)"]), sep="\n")


if __name__ == "__main__":
    main()
