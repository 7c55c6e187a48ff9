"""What the engine does with 9.75 million parameters and 500 CIFAR-10 images.

The unit b is ``torch.autograd.grad`` of the plain VGG11 with channels-last weights on
all images, measured in the same run. θ is reached by 60 SGD steps from Kaiming's
initialisation: PyTorch's own leaves this network nearly constant.

    python benchmarks/vgg11.py [--json OUT] [--images 500] [--width 1.0] [--device cuda]

needs CIFAR-10 (see ``flatmin.datasets.fetch_cifar10``). Residuals of the eigenpairs of
H are taken again, in float32, by double backward: another path than the one measured.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version

import torch
from torch import nn
from torch.nn import functional as F

from flatmin.curvature import covariance_eigenpairs, hessian_eigenpairs
from flatmin.datasets import fetch_cifar10
from flatmin.modules import VGG11
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk

K, TOL_H, SEED = 5, 1e-3, 0


def trained_network(X, y, width):
    torch.manual_seed(SEED)
    net = VGG11(width=width).to(X.device)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for step in range(60):
        batch = torch.arange(step * 50, step * 50 + 50, device=X.device) % len(X)
        optimizer.zero_grad()
        F.cross_entropy(net(X[batch]), y[batch]).backward()
        optimizer.step()
    return net


def synchronise():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def clock(function, repeats=1):
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        result = function()
    synchronise()
    return (time.perf_counter() - start) / repeats, result


def products_at_a_point(risk, theta, v):
    """Return the seconds of a first product, with its preparation, and of the next."""
    point = risk.linearize(theta)
    return clock(lambda: point.hvp(v))[0], clock(lambda: point.hvp(v), 2)[0]


def peak_gib():
    """Return the high-water mark of the process, on a GPU of PyTorch's allocator."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(arguments):
    data = fetch_cifar10(subset="test")
    X = torch.as_tensor(data.data[: arguments.images]).to(arguments.device)
    y = torch.as_tensor(data.target[: arguments.images]).to(arguments.device)
    net = trained_network(X, y, arguments.width)
    fast = net.to(memory_format=torch.channels_last)
    images = X.to(memory_format=torch.channels_last)
    params = list(fast.parameters())

    def bare():
        return torch.autograd.grad(F.cross_entropy(fast(images), y), params)

    bare()
    units = [clock(bare, 2)[0]]
    rows = {}

    def record(name, seconds, **more):
        units.append(clock(bare, 2)[0])
        b = (units[-2] + units[-1]) / 2
        rows[name] = {"seconds": seconds, "b": seconds / b, **more}
        rows[name]["peak_gib"] = peak_gib()
        print(name, {k: f"{v:.4g}" for k, v in rows[name].items()}, flush=True)

    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    theta = risk.params()
    rng = torch.Generator(theta.device).manual_seed(SEED)
    v = torch.randn(len(theta), generator=rng, device=theta.device)
    loss, gradient = risk.value_and_gradient(theta)
    print(
        f"D = {len(theta)}, loss {float(loss):.3f}, |g0| {float(gradient.norm()):.3g}, "
        f"chunks of {risk.chunk_size}"
    )
    record("gradient", clock(lambda: risk.gradient(theta))[0])
    record("first hvp, trace and trial", clock(lambda: risk.linearize(theta).hvp(v))[0])
    first, use = products_at_a_point(risk, theta, v)
    record("hvp", use)
    record("prepare", first - use)
    seconds, pairs = clock(
        lambda: hessian_eigenpairs(risk, theta, K, tol=TOL_H, rng=rng)
    )
    residuals = check_residuals(net, images, y, theta, pairs, bare)
    record(
        "5 eigenpairs of H",
        seconds,
        products=pairs.n_matvecs,
        largest=float(pairs.eigenvalues[0]),
        worst_residual=residuals,
    )
    record("Tr(Σ) and diag(Σ)", clock(lambda: risk.gradient_variances(theta))[0])
    record("the same again", clock(lambda: risk.gradient_variances(theta))[0])
    seconds, pairs = clock(
        lambda: covariance_eigenpairs(risk, theta, K, tol=TOL_H, rng=rng)
    )
    record("5 eigenpairs of Σ", seconds, products=pairs.n_matvecs)
    for name in ("gld_full", "gld_ggn"):
        law = make_noise_law(name, batch_size=50)
        seconds, state = clock(lambda law=law: law.refresh(risk, theta, rng))
        if state is not None:
            record(f"{name}, refresh", seconds)

        def step(law=law, state=state):
            return law.noisy_gradient(risk, theta, state, rng)

        record(f"{name}, iteration", clock(step, 2)[0])
    return {"rows": rows, "b_seconds": units, "paths": risk.paths}


def check_residuals(net, X, y, theta, pairs, bare):
    """Return the largest ||Hu - λu|| / λ₁ by double backward in chunks."""
    params = list(net.parameters())
    worst = 0.0
    for value, vector in zip(pairs.eigenvalues, pairs.eigenvectors.T, strict=True):
        total = torch.zeros_like(vector)
        for part in torch.arange(len(X)).split(100):
            loss = F.cross_entropy(net(X[part]), y[part], reduction="sum")
            gradient = torch.autograd.grad(loss, params, create_graph=True)
            flat = torch.cat([g.reshape(-1) for g in gradient])
            product = torch.autograd.grad(flat @ vector, params)
            total += torch.cat([g.reshape(-1) for g in product])
        residual = (total / len(X) - value * vector).norm()
        worst = max(worst, float(residual / pairs.eigenvalues.abs().max()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", default=None)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    # PyTorch's convolutions otherwise round to three digits on a GPU.
    torch.backends.cudnn.allow_tf32 = False
    result = measure(arguments)
    result |= {
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
        "versions": {name: version(name) for name in ("flatmin", "torch", "numpy")},
    }
    if arguments.json is not None:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
