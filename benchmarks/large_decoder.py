"""One large model: a decoder of GPT-2's size, each question in a process of its own.

    python benchmarks/large_decoder.py [--quick] [--ask gld_full ...] [--json OUT]

With an OUT that is there, its other rows are kept; a row has the revision it is of.

124 million parameters, embeddings tied to the head, a vocabulary of 50,257, 8 sequences
of 64 tokens that are drawn at random; θ is where the module begins. Times are of the
CPU, in units of b, a bare gradient of the plain module in the same process: they say
little of the wall's clock where several cores work. A first call holds what is tried
before the first number, and the making of a graph. Memory is the high-water mark of
the whole process, and how much of it the question took beyond a bare gradient. With
adapters all is frozen but two narrow layers beside each linear one, which are θ. The
eigenpair is searched once, with a basis of four vectors; its residual is then taken
anew from a double backward in float64 by plain PyTorch, a sequence at a time.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from kinds import Layer, high_water, provenance, write
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatmin.curvature import covariance_trace, hessian_eigenpairs
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk

SEED = 0
SIZES = {  # layers, vocabulary, width, heads, sequences, tokens
    False: (12, 50_257, 768, 12, 8, 64),
    True: (2, 997, 48, 4, 4, 16),
}


class TiedDecoder(nn.Module):
    """GPT-2's shapes: the head multiplies by the embedding of the tokens."""

    def __init__(self, n_layers, n_tokens, width, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, width)
        self.places = nn.Embedding(1024, width)
        self.layers = nn.Sequential(*(Layer(width, n_heads) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, X):
        places = self.places(torch.arange(X.shape[1], device=X.device))
        H = self.norm(self.layers(self.tokens(X) + places))
        return nn.functional.linear(H, self.tokens.weight)


class Adapted(nn.Module):
    """A frozen linear layer beside a trained product of two narrow ones (LoRA)."""

    def __init__(self, layer, rank=4):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, X):
        return self.layer(X) + self.up(self.down(X))


def with_adapters(module):
    """Return a module of which only the adapters of its linear layers are trained."""
    module.requires_grad_(False)
    for part in list(module.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(part, name, Adapted(layer))
    return module


def gld_full(risk, theta):
    law, rng = (
        make_noise_law("gld_full", batch_size=1),
        torch.Generator().manual_seed(1),
    )
    state = law.refresh(risk, theta, rng)
    return lambda: law.noisy_gradient(risk, theta, state, rng)


def hvp(risk, theta):
    v = torch.randn_like(theta)
    points = []

    def product():
        points[:] = points or [risk.linearize(theta)]
        return points[0].hvp(v)

    return product


def ggn(risk, theta):
    v = torch.randn_like(theta)
    points = []

    def product():
        points[:] = points or [risk.linearize(theta)]
        return points[0].ggn(v)

    return product


def one_hvp(risk, theta):
    v = torch.randn_like(theta)
    return lambda: risk.linearize(theta, n_products=1).hvp(v)


def trace(risk, theta):
    return lambda: covariance_trace(risk, theta)


def eigenpair(risk, theta):
    return lambda: hessian_eigenpairs(
        risk, theta, 1, tol=1e-2, max_basis=4, max_matvecs=60, rng=0
    )


ASKED = {
    "gld_full": gld_full,
    "H v": hvp,
    "H v, one product": one_hvp,
    "G v": ggn,
    "Tr(Σ)": trace,
    "eigenpair": eigenpair,
    "gld_full, adapters": gld_full,
    "H v, adapters": hvp,
    "Tr(Σ), adapters": trace,
}


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def checked(module, X, pairs):
    """Return the pair's numbers, and ‖H v - λ v‖ / |λ| in float64, by PyTorch alone."""
    module = module.double()
    parameters = list(module.parameters())
    v = pairs.eigenvectors[:, 0].double()
    sizes = [p.numel() for p in parameters]
    parts = zip(v.split(sizes), parameters, strict=True)
    along = [part.view_as(p) for part, p in parts]
    product = torch.zeros_like(v)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        for x in X.split(1):
            slopes = torch.autograd.grad(
                mean_loss(module, x), parameters, create_graph=True
            )
            parts = torch.autograd.grad(slopes, parameters, along)
            product += torch.cat([part.flatten() for part in parts]) / len(X)
    value = float(pairs.eigenvalues[0])
    return {
        "eigenvalue": value,
        "n_matvecs": pairs.n_matvecs,
        "converged": bool(pairs.converged[0]),
        "residual": float(pairs.residuals[0]) / abs(value),
        "residual in float64": float((product - value * v).norm()) / abs(value),
        "quotient in float64": float(v @ product / v.square().sum()),
    }


def mean_loss(module, X):
    return nn.functional.cross_entropy(module(X)[:, :-1].transpose(1, 2), X[:, 1:])


def measure(ask, quick):
    """Measure one question in this process."""
    torch.manual_seed(SEED)
    *sizes, n, length = SIZES[quick]
    module = TiedDecoder(*sizes)
    if ask.endswith(", adapters"):
        module = with_adapters(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    X = torch.randint(0, sizes[1], (n, length))

    def gradient():
        return torch.autograd.grad(mean_loss(module, X), parameters)

    gradient()
    units, bare = [seconds(gradient) for _ in range(2)], high_water()
    print("bare", units, bare, file=sys.stderr, flush=True)
    found = {
        "n_params": sum(p.numel() for p in parameters),
        "n_frozen": sum(p.numel() for p in module.parameters() if not p.requires_grad),
    }
    start = time.process_time()
    risk = EmpiricalRisk(module, "next_token", X, X)
    times = {"construction": time.process_time() - start}
    print("made", times, high_water(), file=sys.stderr, flush=True)
    made = high_water()
    call = ASKED[ask](risk, risk.params())
    answers = []
    times["first"] = seconds(lambda: answers.append(call()))
    first = high_water()
    print("first", times, first, file=sys.stderr, flush=True)
    if ask == "eigenpair":
        found["eigenpair"] = checked(copy.deepcopy(module), X, *answers)
        print(found, file=sys.stderr, flush=True)
        later = first
    else:
        again = 3 if quick else 1
        times["later"] = statistics.median(seconds(call) for _ in range(again))
        later = high_water()
    units.append(seconds(gradient))
    b = statistics.median(units)
    return found | {
        "b_seconds": b,
        "in_b": {name: t / b for name, t in times.items()},
        "peak_mib": {
            "bare gradient": bare,
            "construction": made,
            "first": first,
            "later": later,
        },
        "paths": risk.paths,
    }


def in_a_process(ask, quick):
    command = [sys.executable, __file__, "--one", ask] + ["--quick"] * quick
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended by {done.returncode}"]
        return {"error": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def stored_rows(path):
    """Return what an earlier call has measured, each row with its revision."""
    if path is None or not path.exists():
        return {}
    return json.loads(path.read_text())["rows"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, in a minute")
    parser.add_argument("--ask", nargs="+", choices=ASKED, default=list(ASKED))
    parser.add_argument("--json", type=Path, default=None, metavar="OUT")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.quick)))
        return
    result = {"format": 1, **provenance(), "seed": SEED, "quick": arguments.quick}
    result["rows"] = rows = stored_rows(arguments.json)
    for ask in arguments.ask:
        found = in_a_process(ask, arguments.quick)
        rows[ask] = found | {"revision": result["revision"]}
        write(arguments.json, result)
        if "error" in found:
            print(f"{ask:20}{found['error']}", flush=True)
            continue
        times = ", ".join(f"{k} {v:.1f} b" for k, v in found["in_b"].items())
        peak = found["peak_mib"]["later"] / 1024
        print(f"{ask:20}{times}; {peak:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
