"""First and later calls on the kinds of network that people bring, beside code by hand.

    python benchmarks/kinds.py [--quick] [--rows digits ...] [--json OUT]

Each row, by flatmin and by hand, is measured in processes of its own; a first call is
the first of its process, imports and the making of the risk apart. Times are in units
of b, a bare gradient of the plain module in the same process, once by the clock of the
wall and once by that of the CPU, and stand as minimum, median and maximum over
processes. Memory is the high-water mark beyond that of the bare gradient. By hand is
what an informed user writes: a double backward with its graph kept, under SciPy's
``eigsh``, and ``vmap(grad)``. The data are drawn at random but for the digits, and θ is
where the module begins: only shapes matter for the costs, but for the number of
products that eigenpairs take, which is larger there than after training.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse.linalg
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatmin.curvature import hessian_eigenpairs
from flatmin.risk import EmpiricalRisk

K, TOL = 10, 1e-4
CROSS_ENTROPY = nn.CrossEntropyLoss()


class Layer(nn.Module):
    """A layer of a decoder: causal attention and two linear layers, each normed."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, X):
        heads = self.attend(self.norms[0](X)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        X = X + self.out(attended.transpose(1, 2).flatten(2))
        return X + self.down(nn.functional.gelu(self.up(self.norms[1](X))))


class Decoder(nn.Module):
    def __init__(self, n_layers, n_tokens, length, width):
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*(Layer(width, 4) for _ in range(n_layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, n_tokens)

    def forward(self, X):
        H = self.layers(self.tokens(X) + self.places)
        return self.out(self.norm(H)).transpose(1, 2)  # classes on the second axis


class Residual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        short = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
        self.short = nn.Identity() if n_in == n_out else short

    def forward(self, X):
        return (self.body(X) + self.short(X)).relu()


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.recurrent = nn.LSTM(8, width, 2, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, X):
        return self.head(self.recurrent(X)[0][:, -1])


def mlp(sizes, activation):
    layers = [nn.Linear(sizes[0], sizes[1])]
    for n_in, n_out in pairwise(sizes[1:]):
        layers += [activation(), nn.Linear(n_in, n_out)]
    return nn.Sequential(*layers)


def digits(quick):
    data = load_digits()
    n, width = (200, 16) if quick else (1797, 128)
    X = torch.as_tensor(data.data[:n] / 16, dtype=torch.float32)
    module = mlp((64, width, width, 10), nn.ReLU)
    return module, X, torch.as_tensor(data.target[:n])


def table(quick):
    n, width = (300, 10) if quick else (20_000, 100)
    module = mlp((30, width, width, 2), nn.Tanh)
    return module, torch.randn(n, 30), torch.randint(0, 2, (n,))


def decoder(n_layers):
    def make(quick):
        n, length, width = (4, 8, 8) if quick else (32, 64, 128)
        X = torch.randint(0, 256, (n, length))
        return Decoder(n_layers, 256, length, width), X, X.roll(-1, 1)

    return make


def residual(quick):
    n, side, blocks = (4, 8, 1) if quick else (128, 32, 3)
    layers, n_in = [nn.Conv2d(3, 16, 3, padding=1)], 16
    for stage, n_out in enumerate((16, 32, 64)):
        for block in range(blocks):
            layers.append(Residual(n_in, n_out, 2 if stage and block == 0 else 1))
            n_in = n_out
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    module = nn.Sequential(*layers, *head).eval()
    return module, torch.randn(n, 3, side, side), torch.randint(0, 10, (n,))


def lstm(quick):
    n, length, width = (6, 5, 4) if quick else (128, 24, 32)
    return Recurrent(width), torch.randn(n, length, 8), torch.randint(0, 5, (n,))


ROWS = {
    "digits": digits,
    "table": table,
    "decoder of 4 layers": decoder(4),
    "decoder of 12 layers": decoder(12),
    "decoder of 24 layers": decoder(24),
    "residual network": residual,
    "LSTM": lstm,
}


class ByFlatmin:
    """What flatmin is asked; each call at a new point, as a user's would be."""

    def __init__(self, module, X, y):
        self.risk = EmpiricalRisk(module, "cross_entropy", X, y)
        self.theta = self.risk.params()
        self.v = torch.randn_like(self.theta)

    def product(self):
        return self.risk.linearize(self.theta, n_products=1).hvp(self.v)

    def eigenpairs(self):
        pairs = hessian_eigenpairs(self.risk, self.theta, K, tol=TOL, rng=0)
        return pairs.eigenvalues

    def kept(self):
        point = self.risk.linearize(self.theta)
        point.hvp(self.v), point.ggn(self.v)
        return {"H v": lambda: point.hvp(self.v), "G v": lambda: point.ggn(self.v)}

    def squares(self):
        return self.risk.squared_norms(self.theta).sum()

    def notes(self):
        return self.risk.paths


class ByHand:
    """The same in PyTorch and SciPy."""

    def __init__(self, module, X, y):
        self.module, self.X, self.y = module, X, y
        self.parameters = list(module.parameters())
        self.v = torch.randn(sum(p.numel() for p in self.parameters))

    def multiply(self):
        """Return v -> H v, by a gradient with its graph."""
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = CROSS_ENTROPY(self.module(self.X), self.y)
            slopes = torch.autograd.grad(loss, self.parameters, create_graph=True)
        sizes = [p.numel() for p in self.parameters]

        def product(v):
            parts = zip(v.split(sizes), self.parameters, strict=True)
            along = [part.view_as(p) for part, p in parts]
            product = torch.autograd.grad(
                slopes, self.parameters, along, retain_graph=True
            )
            return torch.cat([part.reshape(-1) for part in product])

        return product

    def product(self):
        return self.multiply()(self.v)

    def eigenpairs(self):
        product, n = self.multiply(), len(self.v)
        operator = scipy.sparse.linalg.LinearOperator(
            (n, n),
            lambda x: product(torch.from_numpy(x.astype(np.float32)).ravel()).numpy(),
            dtype=np.float32,
        )
        start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
        values = scipy.sparse.linalg.eigsh(
            operator, K, which="LM", tol=TOL, v0=start, return_eigenvectors=False
        )
        return torch.from_numpy(values)

    def kept(self):
        product = self.multiply()
        product(self.v)
        return {"H v": lambda: product(self.v)}

    def squares(self):
        parameters = {name: p.detach() for name, p in self.module.named_parameters()}

        def loss(parameters, x, y):
            return CROSS_ENTROPY(functional_call(self.module, parameters, x[None]), y)

        norms = vmap(grad(loss), (None, 0, 0))
        total = 0.0
        for x, y in zip(self.X.split(50), self.y[:, None].split(50), strict=True):
            total += sum(g.square().sum() for g in norms(parameters, x, y).values())
        return total

    def notes(self):
        return {}


HOW = {"flatmin": ByFlatmin, "by hand": ByHand}


def clock(call):
    """Return seconds by the wall and by the CPU."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def high_water():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(row, how, ask, quick):
    """Measure one question in this process; times are (wall, CPU) in seconds."""
    torch.manual_seed(0)
    module, X, y = ROWS[row](quick)

    def gradient():
        loss = CROSS_ENTROPY(module(X), y)
        return torch.autograd.grad(loss, list(module.parameters()))

    gradient()
    one = torch.ones(1, requires_grad=True)
    torch.autograd.grad(one * 1, one, torch.ones(1))  # whose first call imports SymPy
    asked = HOW[how](module, X, y)
    before, units = high_water(), [clock(gradient) for _ in range(5)]
    times = {}
    if ask in ("product", "eigenpairs"):
        times[f"{ask}, first"] = clock(getattr(asked, ask))
        memory = high_water() - before
        times[f"{ask}, later"] = clock(getattr(asked, ask))
    else:
        calls = asked.kept() if ask == "kept" else {"Σ‖gᵢ‖²": asked.squares}
        memory = None
        for name, call in calls.items():
            call()
            repeats = [clock(call) for _ in range(5)]
            times[name] = tuple(map(statistics.median, zip(*repeats, strict=True)))
    units += [clock(gradient) for _ in range(5)]
    b = tuple(map(statistics.median, zip(*units, strict=True)))
    return {
        "b_seconds": b,
        "in_b": {
            name: [t / unit for t, unit in zip(seconds, b, strict=True)]
            for name, seconds in times.items()
        },
        "memory_mib": memory,
        "paths": asked.notes(),
    }


def in_a_process(row, how, ask, quick):
    command = [sys.executable, __file__, "--one", row, how, ask]
    done = subprocess.run(
        command + ["--quick"] * quick, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def summary(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def gather(row, how, ask, quick, n_processes):
    """Return minimum, median and maximum over processes."""
    found = [in_a_process(row, how, ask, quick) for _ in range(n_processes)]
    failed = [result for result in found if "error" in result]
    if failed:
        return failed[0]
    by = {}
    for name in found[0]["in_b"]:
        pairs = [result["in_b"][name] for result in found]
        by[name] = {
            clock: summary([pair[i] for pair in pairs])
            for i, clock in enumerate(("wall", "cpu"))
        }
    memory = [result["memory_mib"] for result in found]
    return {
        "b_ms": summary([1e3 * result["b_seconds"][1] for result in found]),
        "in_b": by,
        "memory_mib": summary(memory) if memory[0] is not None else None,
        "paths": found[0]["paths"],
    }


def write(path, result):
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def provenance():
    # Here, so that the processes that are measured do not load pandas and skorch.
    from flatmin.comparison._revision import find_revision

    return {
        "command": " ".join(["python", *sys.argv]),
        "revision": find_revision(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, in a minute")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None, metavar="OUT")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(*arguments.one, arguments.quick)))
        return
    result = {"format": 1, **provenance(), "quick": arguments.quick, "rows": {}}
    for row in arguments.rows:
        result["rows"][row] = {how: {} for how in HOW}
        for ask in ("product", "eigenpairs", "kept", "squares"):
            for how in HOW:
                found = gather(row, how, ask, arguments.quick, arguments.processes)
                result["rows"][row][how][ask] = found
                write(arguments.json, result)
                if "error" in found:
                    print(f"{row:22}{how:9}{ask:20} {found['error']}", flush=True)
                    continue
                for name, clocks in found["in_b"].items():
                    cpu = clocks["cpu"]
                    print(
                        f"{row:22}{how:9}{name:20}{cpu['median']:9.2f} b of CPU "
                        f"({cpu['min']:.2f} to {cpu['max']:.2f})",
                        flush=True,
                    )
                if found["memory_mib"]:
                    print(f"{row:22}{how:9}+{found['memory_mib']['median']:.0f} MiB")


if __name__ == "__main__":
    main()
