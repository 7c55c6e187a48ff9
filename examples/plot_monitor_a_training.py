"""
Watch the curvature in a training loop of your own
==================================================

A plain PyTorch loop, and one line in it: ``monitor(net, step, lr=lr)``. The module
comes back untouched; the numbers are in a table that grows, with their errors.

What is watched is the edge of stability (Cohen et al. 2021, arXiv 2103.00065). Gradient
descent raises λ₁, the largest eigenvalue of the Hessian, until λ₁η/2 reaches 1, where
it would begin to diverge, and hovers there. SGD at the same rate stays below.

    python examples/plot_monitor_a_training.py [--full] [--output DIR] [--log-dir DIR]

``--log-dir`` writes TensorBoard's files, too, where that is installed. Lightning, the
``Trainer`` of Hugging Face and skorch take the monitor as a callback: see
``flatmin.integrations``.
"""

# %%
import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from flatmin import FlatnessMonitor

sys.path.append(str(Path(__file__).parent / "paper"))
from _record import provenance  # what a stored result says of its origin

FULL = {"n_examples": 500, "n_steps": 6000, "every": 50}
SHORT = {"n_examples": 100, "n_steps": 60, "every": 20}
LR, BATCH_SIZE = 1.0, 16

# %%
# Digits, with one number for each class as the target.


def load(n_examples):
    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X[:n_examples] / 16, dtype=torch.float32)
    return X, F.one_hot(torch.tensor(y[:n_examples]), 10).float()


def make_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 0.5
    return net


# %%
# The loop. A call costs some 30 gradients of the examples it looks at, once in
# ``every`` steps; here it may look at all of them.


def train(X, y, *, batch_size, n_steps, every, writer=None):
    net = make_net()
    monitor = FlatnessMonitor(
        X,
        y,
        loss="squared_error",
        quantities=["loss", "edge_of_stability", "covariance_trace"],
        every=every,
        budget=50,
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for step in range(n_steps + 1):
        row = monitor(net, step, lr=LR)
        for name in row if writer is not None else ():
            writer.add_scalar(f"batch {batch_size}/{name}", row[name], step)
        rows = torch.randint(len(X), (batch_size,)) if batch_size < len(X) else ...
        optimizer.zero_grad()
        F.mse_loss(net(X[rows]), y[rows]).backward()
        optimizer.step()
    return monitor.history_


# %%
# The picture: λ₁η/2 against 1, and the training loss beside it.


def draw(history):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    runs = history.groupby("run", sort=False)
    for (label, rows), color in zip(runs, ("black", "#d55e00"), strict=True):
        axes[0].plot(rows["step"], rows["edge_of_stability"], color=color, label=label)
        axes[1].plot(rows["step"], rows["loss"], color=color, label=label)
    axes[0].axhline(1, color="gray", linestyle=":", linewidth=1)
    axes[0].set(xlabel="step", ylabel="λ₁η/2", ylim=(0, None))
    axes[1].set(xlabel="step", ylabel="training loss", yscale="log")
    axes[0].legend(frameon=False)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--full", action="store_true", help="6000 steps, a minute")
    parser.add_argument("--output", type=Path, default=Path("monitor-output"))
    parser.add_argument("--log-dir", type=Path, default=None, help="for TensorBoard")
    options = parser.parse_args(arguments)
    sizes = FULL if options.full else SHORT
    X, y = load(sizes["n_examples"])
    writer = nullcontext()
    if options.log_dir is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(options.log_dir))
    settings = {"n_steps": sizes["n_steps"], "every": sizes["every"]}
    runs = {"gradient descent": len(X), f"SGD, m = {BATCH_SIZE}": BATCH_SIZE}
    with writer as log:
        history = pd.concat(
            train(X, y, batch_size=size, writer=log, **settings).assign(run=label)
            for label, size in runs.items()
        )
    options.output.mkdir(parents=True, exist_ok=True)
    result = provenance() | {"seed": 0, "history": history.to_dict("list")}
    (options.output / "edge_of_stability.json").write_text(json.dumps(result) + "\n")
    draw(history).savefig(options.output / "edge_of_stability.png", dpi=150)
    late = history[history["step"] > 2 * sizes["n_steps"] / 3]
    print(late.groupby("run", sort=False)["edge_of_stability"].mean().round(3))
    return history


if __name__ == "__main__":
    main()
