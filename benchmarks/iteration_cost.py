"""The cost of one iteration of every method, in units of the best bare gradient.

The unit b is ``torch.autograd.grad`` of the plain LeNet with channels-last weights on
all 1200 noisy Fashion-MNIST images, measured between the methods in the same run. A
method's iteration is what an estimator runs: refresh when due, noisy gradient, step.
Each figure is the median over blocks, each block a whole number of refresh periods.

    python benchmarks/iteration_cost.py [--json OUT] [--blocks 5]

needs Fashion-MNIST (see ``flatmin.datasets.fetch_fashion_mnist``).
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version

import torch
from torch.nn import functional as F

from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.dynamics import FlatBinding, NoisyDescent
from flatmin.modules import LeNet
from flatmin.noise import METHODS, make_noise_law
from flatmin.risk import EmpiricalRisk

LR, BATCH_SIZE, N_COMPONENTS = 0.03, 20, 20


def bare_gradient(net, risk_data):
    """Return the function whose time is b."""
    X, y = risk_data
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    # One channel leaves PyTorch's channels-last strides ambiguous; these are not.
    _, c, h, w = X.shape
    fast = torch.empty_strided(X.shape, (c * h * w, 1, w * c, c)).copy_(X)
    params = list(net.parameters())
    return lambda: torch.autograd.grad(F.cross_entropy(net(fast), y), params)


def make_descent(risk, net, name, theta):
    known = METHODS[name]._get_param_names()
    settings = {"batch_size": BATCH_SIZE, "n_components": N_COMPONENTS}
    law = make_noise_law(name, **{k: v for k, v in settings.items() if k in known})
    binding = FlatBinding(copy.deepcopy(net))
    binding.assign(theta)
    optimizer = torch.optim.SGD(binding.params, lr=LR)
    rng = torch.Generator().manual_seed(0)
    return NoisyDescent(risk, law, binding, optimizer, rng)


def seconds(function, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", default=None)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=300, help="GD steps before")
    arguments = parser.parse_args()

    data = load_noisy_fashion_mnist(1000, 200, random_state=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LeNet()
    X, y = torch.as_tensor(data.data), torch.as_tensor(data.target)
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    bare = bare_gradient(net, (X, y))
    start = make_descent(risk, net, "gd", risk.params())
    start.optimizer.param_groups[0]["lr"] = 0.1
    start.run(arguments.warmup)
    theta = start.theta.clone()

    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg(),
        "versions": {name: version(name) for name in ("flatmin", "torch")},
        "iterations": {},
    }
    for name in METHODS:
        descent = make_descent(risk, net, name, theta)
        descent.run(1)
        period = descent.law.refresh_every
        length = period if period > 1 else (50 if name == "sgd" else 3)
        descent.run(period - 1)
        ratios, units = [], []
        for _ in range(arguments.blocks):
            unit = seconds(bare, 3)
            ratios.append(seconds(lambda: descent.run(length), 1) / length / unit)  # noqa: B023
            units.append(unit)
        row = {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "b_ms": 1e3 * statistics.median(units),
        }
        result["iterations"][name] = row
        print(
            f"{name:22} {row['median']:7.2f} b  "
            f"({row['min']:.2f} to {row['max']:.2f}), b = {row['b_ms']:.1f} ms",
            flush=True,
        )
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
