"""Many copies of a small network at once: their time, and their exits from a minimum.

    python benchmarks/chains.py [--quick] [--json OUT]

The network is the paper's of 251 parameters, on N points of its cubic with noisy
targets. ``time`` is a step of ``gld_full`` for one θ and for 100 chains: minimum,
median and maximum of five blocks measured in turn. ``exits`` starts near a minimum of
the risk with ``l2=0.01``, found by gradient descent, and waits until ‖θ - θ₀‖ exceeds
``RADIUS``: 100 chains by ``simulate``, and 50 runs alone by a loop of one's own, with
seeds that no chain has. Rule: the two agree if a Kolmogorov-Smirnov test of the exit
times has p ≥ 0.01. Two more settings tell how far the exit follows η/m: with η and m
halved the time ηt should stay, up to terms in η λ₁, and with η alone it should grow.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp

from flatmin import EmpiricalRisk
from flatmin.comparison._revision import find_revision
from flatmin.datasets import make_cubic_regression
from flatmin.dynamics import simulate
from flatmin.modules import cubic_regression_mlp
from flatmin.noise import make_noise_law

FORMAT = 1
SEED = 0
N_CHAINS = 100
RADIUS = 0.025
SETTINGS = ((0.01, 2), (0.005, 1), (0.005, 2))  # η, m; runs alone have the first


def make_risk(n, l2=0.0):
    X, y = make_cubic_regression(n)
    y = y + 0.1 * np.random.default_rng(SEED).standard_normal(n)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = cubic_regression_mlp()
    X, y = (np.asarray(part, dtype="float32").reshape(n, 1) for part in (X, y))
    return EmpiricalRisk(net, "squared_error", X, y, l2=l2)


def steps(risk, theta, n_steps):
    """Return the seconds of a step of gld_full."""
    law, rng = make_noise_law("gld_full", batch_size=2), torch.Generator()
    start = time.perf_counter()
    for _ in range(n_steps):
        theta = theta - 0.01 * law.noisy_gradient(risk, theta, None, rng)[1]
    return (time.perf_counter() - start) / n_steps


def measure_time(n, n_steps):
    risk = make_risk(n)
    one, many = risk.params(), risk.params().repeat(N_CHAINS, 1)
    found = {"one": [], "chains": []}
    for block in range(6):
        for name, theta in (("one", one), ("chains", many)):
            seconds = steps(risk, theta, n_steps)
            if block:  # the first tries the ways
                found[name].append(1e3 * seconds)
    ratios = [b / a for a, b in zip(found["one"], found["chains"], strict=True)]
    rows = {"ms_one": found["one"], "ms_chains": found["chains"], "ratio": ratios}
    summary = {
        name: [min(row), statistics.median(row), max(row)] for name, row in rows.items()
    }
    return summary | {"N": n, "paths": risk.paths}


def minimum(risk, n_steps):
    theta = risk.params()
    for _ in range(n_steps):
        theta = theta - 0.03 * risk.gradient(theta)
    return theta


def alone(risk, start, lr, m, n_iter, seed):
    """Return when a run by hand leaves the ball; n_iter if it does not."""
    law, theta = make_noise_law("gld_full", batch_size=m), start
    rng = torch.Generator().manual_seed(seed)
    for t in range(n_iter):
        theta = theta - lr * law.noisy_gradient(risk, theta, None, rng)[1]
        if torch.linalg.vector_norm(theta - start) > RADIUS:
            return t + 1
    return n_iter


def measure_exits(n_minimise, n_iter, n_alone):
    risk = make_risk(20, l2=0.01)
    start = minimum(risk, n_minimise)
    found = {
        "radius": RADIUS,
        "n_iter": n_iter,
        "loss": float(risk.value(start)),
        "gradient_norm": float(risk.gradient(start).norm()),
        "simulate": [],
    }
    for lr, m in SETTINGS:
        began = time.perf_counter()
        run = simulate(
            risk,
            make_noise_law("gld_full", batch_size=m),
            start,
            lr=lr,
            n_iter=n_iter,
            n_chains=N_CHAINS,
            reached=lambda theta: (theta - start).norm(dim=-1) > RADIUS,
            rng=SEED,
        )["gld_full"]
        mean = run.mean_exit_time()
        found["simulate"].append(
            {
                "lr": lr,
                "m": m,
                "exit_times": run.exit_times.tolist(),
                "n_censored": int(run.censored.sum()),
                "mean": float(mean),
                "stderr": float(mean.stderr),
                "mean_lr_t": lr * float(mean),
                "seconds": time.perf_counter() - began,
            }
        )
    lr, m = SETTINGS[0]
    began = time.perf_counter()
    times = [alone(risk, start, lr, m, n_iter, 1000 + i) for i in range(n_alone)]
    test = ks_2samp(times, found["simulate"][0]["exit_times"])
    found["alone"] = {
        "exit_times": times,
        "n_censored": times.count(n_iter),
        "mean": statistics.fmean(times),
        "stderr": statistics.stdev(times) / len(times) ** 0.5,
        "seconds": time.perf_counter() - began,
    }
    found["ks"] = {"statistic": float(test.statistic), "p": float(test.pvalue)}
    found["agrees"] = bool(test.pvalue >= 0.01)
    return found


def measure(*, quick):
    sizes = (20,) if quick else (20, 100, 1000)
    return {
        "format": FORMAT,
        "time": [measure_time(n, 5 if quick else 20) for n in sizes],
        "exits": measure_exits(
            *((200, 30, 3) if quick else (5000, 1500, 50)),
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default=None, metavar="OUT")
    arguments = parser.parse_args()
    report = {
        "revision": find_revision(),
        "command": f"python benchmarks/chains.py{' --quick' * arguments.quick}",
        "seed": SEED,
        "machine": {
            "platform": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
    } | measure(quick=arguments.quick)
    for row in report["time"]:
        one, many, ratio = (row[key][1] for key in ("ms_one", "ms_chains", "ratio"))
        print(
            f"N = {row['N']}: a step of one θ {one:.2f} ms, of {N_CHAINS} chains "
            f"{many:.2f} ms, {ratio:.1f} times"
        )
    for run in report["exits"]["simulate"]:
        print(
            f"η = {run['lr']}, m = {run['m']}: exit after {run['mean']:.0f} ± "
            f"{run['stderr']:.0f} steps, ηt = {run['mean_lr_t']:.1f}, "
            f"{run['n_censored']} censored, {run['seconds']:.0f} s"
        )
    apart = report["exits"]["alone"]
    print(
        f"alone: {apart['mean']:.0f} ± {apart['stderr']:.0f} steps, "
        f"{apart['seconds']:.0f} s; Kolmogorov-Smirnov p = "
        f"{report['exits']['ks']['p']:.3f}"
    )
    if arguments.json is not None:
        text = json.dumps(report, indent=1, ensure_ascii=False)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
