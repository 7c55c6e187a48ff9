"""How cost grows with the examples N, the parameters D and the eigenpairs k.

    python benchmarks/scaling.py [--quick] [--device cuda] [--json OUT]

Seconds are medians; memory is the high-water mark beyond the data and the parameters,
in a process of its own (on a GPU, of PyTorch's allocator). The exponents are slopes of
log seconds in log N, D and k, fitted to the larger half of the sizes: the smaller ones
are overhead. X is drawn at random; only shapes matter for these costs, but for the
number of products that eigenpairs take, which is counted on Fashion-MNIST after
gradient descent where ``FLATMIN_DATA`` has it.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from flatmin.curvature import HessianOperator
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.linalg import eigsh
from flatmin.modules import MLP, LeNet
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk

SEED = 0
N_VALUES = (300, 1200, 5000, 20000, 60000)
WIDTHS = (1, 3, 10, 100, 1000, 8800)  # of an MLP on 1024 numbers: D from 1e3 to 1e7
K_VALUES = (1, 3, 10, 30, 100)


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call, device, budget=20.0):
    """Return the median of up to five calls after a first, within a budget."""
    call()
    synchronise(device)
    times = []
    while len(times) < 5 and (not times or sum(times) < budget):
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def high_water(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_risk(module, X, y, device):
    """Return the seconds of each operation, and the memory they take."""
    risk = EmpiricalRisk(module, "cross_entropy", X, y, device=device)
    theta = risk.params()
    rng = torch.Generator(device).manual_seed(SEED)
    v = torch.randn(len(theta), generator=rng, device=device)
    before = high_water(device)
    found = {
        "gradient": seconds(lambda: risk.gradient(theta), device),
        "diag Σ": seconds(lambda: risk.gradient_variances(theta), device),
    }
    point = risk.linearize(theta)
    found["H v"] = seconds(lambda: point.hvp(v), device)
    found["G v"] = seconds(lambda: point.ggn(v), device)
    law = make_noise_law("gld_full")
    found["gld_full"] = seconds(
        lambda: law.noisy_gradient(risk, theta, None, rng), device
    )
    return {
        "N": len(X),
        "D": len(theta),
        "chunk": risk.chunk_size,
        "seconds": found,
        "memory_mib": high_water(device) - before,
        "paths": risk.paths,
    }


def of_examples(n, device):
    torch.manual_seed(SEED)
    X = torch.rand(n, 1, 28, 28).to(device)
    return measure_risk(LeNet(), X, torch.randint(0, 10, (n,)), device)


def of_parameters(width, device):
    torch.manual_seed(SEED)
    module = MLP(1024, 10, hidden_layer_sizes=(width, 10))
    X, y = torch.randn(1200, 1024), torch.randint(0, 10, (1200,))
    row = measure_risk(module, X.to(device), y, device)
    risk = EmpiricalRisk(module, "cross_entropy", X, y, device=device)
    row["eigenpairs"] = eigenpairs(risk, 5)
    return row


def of_components(device, n_steps):
    """Yield products and seconds of the k largest eigenpairs of LeNet."""
    torch.manual_seed(SEED)
    try:
        X, y = load_noisy_fashion_mnist(
            download_if_missing=False, random_state=SEED, return_X_y=True
        )
    except OSError:
        X, y = np.random.default_rng(0).random((1200, 1, 28, 28)), np.arange(1200) % 10
    risk = EmpiricalRisk(
        LeNet(), "cross_entropy", X.astype(np.float32), y, device=device
    )
    theta = risk.params()
    for _ in range(n_steps):
        theta -= 0.1 * risk.gradient(theta)
    risk.set_params(theta)
    eigenpairs(risk, 1)  # traces
    for k in K_VALUES:
        yield {"k": k, **eigenpairs(risk, k)}


def eigenpairs(risk, k):
    operator = HessianOperator(risk, risk.params())
    operator @ risk.params()
    synchronise(risk.device.type)
    start = time.perf_counter()
    pairs = eigsh(operator, k, which="LM", tol=1e-3, rng=SEED)
    synchronise(risk.device.type)
    return {
        "seconds": time.perf_counter() - start,
        "products": pairs.n_matvecs,
        "converged": int(pairs.converged.sum()),
    }


def by_itself(function, *arguments):
    """Run a case with a memory high-water mark of its own, on a CPU in a child."""
    if arguments[-1] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return function(*arguments)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def slope(rows, size, value):
    """Return d log value / d log size over the larger half of the sizes."""
    larger = rows[len(rows) // 2 :]
    x = [math.log(row[size]) for row in larger]
    return float(np.polyfit(x, [math.log(value(row)) for row in larger], 1)[0])


def measure(arguments):
    device, quick = arguments.device, arguments.quick
    report = {"examples": [], "parameters": [], "components": []}

    def keep(kind, row):
        report[kind].append(row)
        print(kind, json.dumps(row, ensure_ascii=False), flush=True)
        gc.collect()  # the graphs of a risk hold each other

    for n in N_VALUES[:3] if quick else N_VALUES:
        keep("examples", by_itself(of_examples, n, device))
    for width in WIDTHS[:4] if quick else WIDTHS:
        keep("parameters", by_itself(of_parameters, width, device))
    for row in of_components(device, 100 if quick else 3000):
        keep("components", row)

    names = report["examples"][0]["seconds"]
    report["exponents"] = {
        "N": {
            name: slope(report["examples"], "N", lambda r, n=name: r["seconds"][n])
            for name in names
        },
        "D": {
            name: slope(report["parameters"], "D", lambda r, n=name: r["seconds"][n])
            for name in names
        },
        "products in k": slope(report["components"], "k", lambda r: r["products"]),
        "memory in N": slope(
            report["examples"], "N", lambda r: max(1.0, r["memory_mib"])
        ),
    }
    print(json.dumps(report["exponents"], ensure_ascii=False, indent=1))
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, metavar="OUT")
    arguments = parser.parse_args()
    report = measure(arguments)
    report |= {
        "command": " ".join(sys.argv).replace(f"{os.getcwd()}{os.sep}", ""),
        "seed": SEED,
        "machine": {
            "platform": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": arguments.device
            if arguments.device == "cpu"
            else torch.cuda.get_device_name(),
        },
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
