"""Small networks whose numbers are known, and Displays of every kind."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from flatmin.analysis import Alignment
from flatmin.plotting import (
    AlignmentDisplay,
    ComparisonDisplay,
    LandscapeDisplay,
    SharpnessDisplay,
    SpectrumDisplay,
    TrajectoryDisplay,
)

# Two weights, squared error: L(w) = (1/N) ‖Xw - y‖², H = (2/N) XᵀX everywhere.
X = np.array([[2.0, 0.0], [0.0, 1.0], [2.0, 1.0], [1.0, -1.0]])
Y = np.array([1.0, 0.0, 2.0, -1.0])
HESSIAN = 2 / len(X) * X.T @ X
ON = {"X": X, "y": Y, "loss": "squared_error"}


def line(weights=(0.3, -0.2)):
    """Return that network; the loss is quadratic in its two weights."""
    net = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([weights], dtype=torch.float64))
    return net


def risk(w):
    """Return L at weights of shape (..., 2)."""
    return np.square(np.asarray(w) @ X.T - Y).mean(-1)


def table(k=2, residual=0.5, n_params=10):
    """Return an alignment table with chosen numbers."""
    pairs = pd.DataFrame(
        {
            "hessian": np.linspace(3.0, 1.0, k),
            "covariance": np.linspace(0.3, 0.1, k),
            "cosine": np.linspace(0.9, 0.2, k),
        },
        pd.RangeIndex(1, k + 1, name="i"),
    )
    quantities = pd.DataFrame(
        {"value": [residual, 4.0, 0.5], "stderr": 0.0},
        pd.Index(["projection residual", "‖H‖_F", "‖Σ‖_F"]),
    )
    return Alignment(n_params, quantities, pairs, np.full((k, k), 0.25), 0)


def runs(methods=("gd", "sgd"), seeds=(0, 1, 2), quench=True):
    """Return a tidy table: a shared warm-up to 3, noise to 6, a quench to 8."""
    rows = []
    for seed in seeds:
        for method in methods:
            for i in range(9 if quench else 7):
                phase = "warmup" if i < 3 else "noise" if i < 7 else "quench"
                shift = 0.0 if i <= 3 else 0.1 * methods.index(method)
                rows.append(
                    {
                        "method": method,
                        "seed": seed,
                        "iteration": i,
                        "phase": phase,
                        "loss": 2.0 ** (-i) + shift + 0.01 * seed,
                        "train_score": 0.5 + 0.05 * i,
                        "sharpness": np.nan if i < 3 else 0.1 + shift + 0.02 * seed,
                    }
                )
    return pd.DataFrame(rows)


def ends(methods=("gd", "sgd", "gld_full"), seeds=(0, 1, 2)):
    """Return end points: a seed shifts all methods, a method all seeds."""
    rows = []
    for phase in ("noise", "quench"):
        for i, method in enumerate(methods):
            for seed in seeds:
                own = i * (1 + 0.1 * seed)
                rows.append(
                    {
                        "phase": phase,
                        "method": method,
                        "seed": seed,
                        "sharpness": 5.0 + 3 * seed - own,
                        "test_score": 0.5 + 0.1 * seed + 0.01 * own,
                    }
                )
    return pd.DataFrame(rows)


def displays():
    """Return one Display of every kind, not drawn yet, by name."""
    grid = np.linspace(-1, 4, 101)
    width = 0.2
    centres = np.array([0.0] * 97 + [1.0, 2.0, 3.0])
    bumps = np.exp(-(((grid[:, None] - centres) / width) ** 2) / 2)
    density = bumps.mean(1) / (width * np.sqrt(2 * np.pi))
    step = np.linspace(-1, 1, 9)
    path = np.array([[-0.5, 0.5], [0.0, 0.2], [0.0, 0.0]])
    return {
        "spectrum": SpectrumDisplay(
            [3.0, 2.0, 1.0],
            [0.3, 0.2, 0.1],
            hessian_norm=4.0,
            covariance_norm=0.5,
            n_params=100,
            grid=grid,
            density=density,
            width=width,
        ),
        "alignment": AlignmentDisplay.from_results(table(3)),
        "curves": AlignmentDisplay.from_results(
            [table(3), table(3, 1.0)], iterations=[0, 10]
        ),
        "trajectory": TrajectoryDisplay(runs()),
        "ends": ComparisonDisplay(ends()),
        "sharpness": SharpnessDisplay(
            [0.1, 0.2], {"a": [[1.0, 4.0], [3.0, 8.0]]}, traces={"a": 400.0}
        ),
        "section": LandscapeDisplay(step, step**2),
        "plane": LandscapeDisplay(
            step,
            step**2 + step[:, None] ** 2,
            y=step,
            trajectory=path,
            share=0.5,
            points=np.zeros((1, 2)),
        ),
    }
