"""How often the interval of a subset covers the number of all examples.

    python benchmarks/subsets.py [--quick] [--only NAME] [--blocks 10] [--json OUT]

For each problem and each size n, subsets are drawn 200 times. From each, the numbers
of all N examples are estimated as ``subset=`` of the analyzers does: eigenvalues, norms
and Tr(HΣ) by leaving out each of ten blocks, traces from each block alone. The interval
is Student's at 95 %.

Everything is computed from dense Hessians of the examples, made by ``torch.func``, so
that the whole is exact and a subset costs milliseconds; the networks are small, so that
they fit. That the analyzers give these numbers is what tests/analysis/test_subset.py
shows.

Two problems are hard on purpose. ``table, fitted`` is a network that fits labels
without noise: most examples have no loss left, and a few make up H and Σ. ``noise`` is
a linear model of pure noise, whose eigenvalues are all alike: those of a subset are
spread by chance alone, and their bias is no b/n.
"""

import argparse
import json
import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, grad, hessian, vmap
from torch.nn import functional as F

from flatmin.analysis._sample import N_BLOCKS
from flatmin.analysis._sampling import jackknife
from flatmin.comparison._revision import find_revision

SIZES = (50, 100, 200, 400, 800)
N_DRAWS = 200
LEVEL = 0.95
NAMES = (
    *("λ₁", "λ₂", "λ₃", "λ₄", "λ₅", "γ₁", "‖H‖_F", "Tr(HΣ)"),  # without each block
    *("Tr(H)", "Tr(Σ)"),  # on each block alone
)


def digits():
    """Return scikit-learn's digits, each of 4 x 4 means, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images / 16).unfold(1, 2, 2).unfold(2, 2, 2)
    return images.mean((3, 4)).flatten(1), torch.tensor(data.target)


def table(n=4000, noise=0.5):
    """Return eight numbers an example, and a noisy function of three of them."""
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(n, 8, generator=rng, dtype=torch.float64)
    errors = torch.randn(n, generator=rng, dtype=torch.float64)
    return X, X[:, 0] * X[:, 1] + X[:, 2] + noise * errors


def perceptron(*sizes):
    return nn.Sequential(
        nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2])
    ).double()


def squared(outputs, targets):
    return (outputs - targets).square().mean()


def make_problem(name):
    """Return a trained module, its loss, and the data."""
    torch.manual_seed(0)
    steps = {"digits, late": 1500, "table, fitted": 3000, "noise": 0}.get(name, 300)
    loss = F.cross_entropy
    if name.startswith("digits"):
        X, y = digits()
        module = perceptron(16, 3, 10)
        if name.endswith("squared error"):
            y, loss = F.one_hot(y, 10).double(), squared
    elif name.startswith("table"):
        X, score = table(noise=0.0 if name.endswith("fitted") else 0.5)
        y, module = (score > 0).long(), perceptron(8, 6, 2)
        if name.endswith("squared error"):
            y, loss, module = score[:, None], squared, perceptron(8, 6, 1)
    else:
        X, y = torch.randn(2000, 80).double(), torch.randn(2000, 1).double()
        module, loss = nn.Linear(80, 1, bias=False).double(), squared
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module(X), y).backward()
        optimizer.step()
    return module, loss, X, y


PROBLEMS = (
    "digits, cross-entropy",
    "digits, late",
    "digits, squared error",
    "table, cross-entropy",
    "table, squared error",
    "table, fitted",
    "noise",
)


def dense(module, loss, X, y):
    """Return (N, D) gradients and (N, D * D) Hessians of the examples, and the loss."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])

    def example(theta, x, target):
        parts = zip(shapes.items(), theta.split(sizes), strict=True)
        values = {name: part.view(shape) for (name, shape), part in parts}
        return loss(functional_call(module, values, (x[None],)), target[None])

    gradients = vmap(grad(example), (None, 0, 0))(theta, X, y)
    of_examples = vmap(hessian(example), (None, 0, 0))
    hessians = [
        of_examples(theta, x, target).flatten(1)
        for x, target in zip(X.split(100), y.split(100), strict=True)
    ]
    return gradients, torch.cat(hessians), float(loss(module(X), y).detach())


def sums(gradients, hessians):
    """Return what every quantity of some examples follows from."""
    return (
        torch.tensor(float(len(gradients))),
        gradients.sum(0),
        gradients.T @ gradients,
        hessians.sum(0).view(2 * gradients.shape[1:]),
    )


def traces(n, first, second, hessian):
    """Return Tr(H) and Tr(Σ), with the divisor n."""
    mean = first / n
    return torch.stack([hessian.trace() / n, second.trace() / n - mean @ mean]).numpy()


def smooth(n, first, second, hessian):
    """Return the other numbers of NAMES."""
    mean, H = first / n, hessian / n
    S = second / n - torch.outer(mean, mean)
    curvatures = torch.linalg.eigvalsh(H)
    top = [*curvatures.flip(0)[:5], torch.linalg.eigvalsh(S)[-1]]
    return torch.stack([*top, curvatures.square().sum().sqrt(), (H * S).sum()]).numpy()


def estimate(gradients, hessians, n_all, n_blocks):
    """Return numbers of a subset, the estimates of the whole, and their errors."""
    n = len(gradients)
    blocks = torch.arange(n).tensor_split(n_blocks)
    parts = [sums(gradients[b], hessians[b]) for b in blocks]
    total = [sum(terms) for terms in zip(*parts, strict=True)]
    without = [[a - b for a, b in zip(total, part, strict=True)] for part in parts]
    kinds = ((smooth, without, 1 - 1 / n_blocks), (traces, parts, 1 / n_blocks))
    found = []
    for kind, replicates, kept in kinds:
        own = kind(*total)
        bias, stderr = jackknife(
            own, [kind(*one) for one in replicates], kept=kept, share=n / n_all
        )
        found.append(np.stack([own, own - bias, stderr]))
    return np.concatenate(found, 1)


def measure(name, sizes, n_draws, n_blocks):
    """Return what is stored of one problem."""
    gradients, hessians, loss = dense(*make_problem(name))
    n_all, n_params = gradients.shape
    everything = sums(gradients, hessians)
    whole = np.concatenate([smooth(*everything), traces(*everything)])
    rng = torch.Generator().manual_seed(1)
    reach = t(n_blocks - 1).ppf((1 + LEVEL) / 2)
    rows = []
    for n in sizes:
        start = time.process_time()
        found = []
        for _ in range(n_draws):
            chosen = torch.randperm(n_all, generator=rng)[:n]
            found.append(estimate(gradients[chosen], hessians[chosen], n_all, n_blocks))
        own, value, stderr = np.stack(found, 1)
        covers = np.abs(value - whole) <= reach * stderr
        columns = {
            "coverage": covers.mean(0),
            "relative_bias_of_the_subset": own.mean(0) / whole - 1,
            "relative_bias": value.mean(0) / whole - 1,
            "relative_error": np.sqrt(((value - whole) ** 2).mean(0)) / np.abs(whole),
            "relative_stderr": np.sqrt((stderr**2).mean(0)) / np.abs(whole),
        }
        rows.append({"n": n, **{k: named(column) for k, column in columns.items()}})
        shown = {k: round(v, 3) for k, v in rows[-1]["coverage"].items()}
        print(
            f"{name}, n = {n}: {shown} {time.process_time() - start:.0f} s", flush=True
        )
    return {
        "problem": name,
        "N": n_all,
        "D": n_params,
        "loss": loss,
        "whole": named(whole),
        "rows": rows,
    }


def as_markdown(problems):
    """Return the share of draws that are covered, as it stands in docs/."""
    names = ("λ₁", "λ₅", "γ₁", "Tr(HΣ)", "Tr(H)", "Tr(Σ)")
    lines = [
        f"| problem | n of N | {' | '.join(names)} | λ₁ of the subset, too large by |",
        "|" + "---|" * (3 + len(names)),
    ]
    for problem in problems:
        for row in problem["rows"]:
            cells = [f"{row['coverage'][name]:.3f}" for name in names]
            bias = row["relative_bias_of_the_subset"]["λ₁"]
            head = f"{problem['problem']} | {row['n']} of {problem['N']}"
            lines.append(f"| {head} | {' | '.join(cells)} | {bias:.1%} |")
    return "\n".join(lines)


def named(numbers):
    return dict(zip(NAMES, map(float, numbers), strict=True))


def main():
    """Measure the problems, and store or print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ten draws of two sizes")
    parser.add_argument("--only", choices=PROBLEMS)
    parser.add_argument("--blocks", type=int, default=N_BLOCKS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes, n_draws = ((50, 200), 10) if arguments.quick else (SIZES, N_DRAWS)
    problems = [arguments.only] if arguments.only else PROBLEMS
    stored = {
        "revision": find_revision(),
        "command": " ".join(["python", *sys.argv]),
        "level": LEVEL,
        "n_blocks": arguments.blocks,
        "n_draws": n_draws,
        "standard_error_of_a_coverage": math.sqrt(LEVEL * (1 - LEVEL) / n_draws),
        "problems": [
            measure(name, sizes, n_draws, arguments.blocks) for name in problems
        ],
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("flatmin", "torch", "numpy")},
    }
    print(as_markdown(stored["problems"]))
    if arguments.json:
        text = json.dumps(stored, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
