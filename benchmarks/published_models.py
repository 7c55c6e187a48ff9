"""Models of published packages, whole: flatmin's numbers against float64 autograd.

    python benchmarks/published_models.py [--models NAME ...] [--json FILE]
        [--page docs/published_models.md]

Every model is what its package makes, in a small size with random weights; no class is
written around it. flatmin takes it in float64. Each number is compared with one that
plain autograd gives in float64, without flatmin (``_autograd.py``): the largest
difference, relative to the largest number there. Where flatmin gives none, the row has
the text that it refuses with. A model whose package is not here is left out, and named.

``--json`` stores the rows, of a committed tree; ``--page`` writes the page of what
``--json`` holds. The exit code is 1 if a number is off by more than its limit: 1e-9, or
1e-6 for a model that computes in float32 inside, whatever its parameters are.
"""

import argparse
import json
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from _autograd import Autograd, AutogradOfLosses, in_float64
from _published_model import outputs_of
from _published_others import OTHERS
from _published_transformers import TRANSFORMERS
from run import command, processor, revision, versions

from flatmin.risk import EmpiricalRisk, ModuleLoss

FORMAT = 1  # of what is stored

PUBLISHED = {n: ("transformers", make) for n, make in TRANSFORMERS.items()} | OTHERS
QUANTITIES = ("L", "g₀", "H v", "G v", "diag Σ", "‖gᵢ‖²")
OWN, DIFFERENCES = "L, the model's own", "H v, differences"
LIMITS = {"float64": 1e-9, "float32": 1e-6}
REFUSALS = (ValueError, TypeError)


def reference(published, module):
    """Return the quantities by autograd."""
    y = published.y
    if y is not None and y.is_floating_point():
        y = y.double()
    if isinstance(published.loss, ModuleLoss):
        X = published.X.double()
        return AutogradOfLosses(module, lambda module: published.losses(module, X, y))
    return Autograd(
        module,
        lambda module: outputs_of(published, module),
        lambda outputs: published.losses(outputs, y),
    )


def ways(risk):
    """Return how flatmin is asked for each quantity, at θ and v."""
    return {
        "L": lambda theta, v: risk.value(theta),
        "g₀": lambda theta, v: risk.gradient(theta),
        "H v": lambda theta, v: risk.linearize(theta).hvp(v),
        "G v": lambda theta, v: risk.linearize(theta).ggn(v),
        "diag Σ": lambda theta, v: risk.gradient_variances(theta),
        "‖gᵢ‖²": lambda theta, v: risk.squared_norms(theta),
    }


def difference(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def measure(name):
    """Return one model's row."""
    package, make = PUBLISHED[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        published = make()
    module = getattr(published.module, published.mode)()
    row = {
        "model": name,
        "package": package,
        "version": version(package),
        "class": type(module).__name__,
        "n_params": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "errors": {},
        "refused": {},
    }
    try:
        risk = EmpiricalRisk(
            *(module, published.loss, published.X, published.y),
            dtype="float64",
            chunk_size=None if published.mode == "train" else 4,
            **published.options,
        )
    except REFUSALS as error:
        row["refused"] = dict.fromkeys(QUANTITIES, one_line(error))
        return row
    compare(row, published, risk, reference(published, module))
    lowest = str(risk._model.lowest_dtype).removeprefix("torch.")
    return row | {"precision": lowest, "paths": risk.paths}


def compare(row, published, risk, right):
    """Fill in what each quantity differs by, or why there is none."""
    theta = risk.params()
    v = torch.linspace(-1, 1, len(theta), dtype=theta.dtype)
    wanted = right.measure(v, by_differences=published.by_differences)
    for quantity, ask in ways(risk).items():
        try:
            found = ask(theta, v)
        except REFUSALS as error:
            row["refused"][quantity] = one_line(error)
            continue
        row["errors"][quantity] = difference(found, wanted[quantity])
        if quantity == "H v":
            again = right.hvp_by_differences(v)
            row["errors"][DIFFERENCES] = difference(found, again)
    if published.own_loss is not None:
        with torch.no_grad(), in_float64():
            own = published.own_loss(right.module)
        row["errors"][OWN] = difference(risk.value(theta), own)


def one_line(error):
    return " ".join(str(error).split())


def wrong(row):
    """Return what is off by more than its limit."""
    limit = LIMITS[row.get("precision", "float64")]
    # Of a network with a kink differences tell nothing: they are shown only.
    return [
        quantity
        for quantity, off in row["errors"].items()
        if not off <= limit and quantity != DIFFERENCES
    ]


HEAD = """\
# Published models

Written by `{command}` from [the stored numbers]({stored}).

Each model is what its package's own constructor makes, in a small size with random
weights and six made-up examples; no class is written around it. flatmin takes it in
float64, examples four at a time (with `batch_norm="batch"` all at once). A number is
the largest difference from plain autograd in float64 without flatmin, relative to the
largest number there: the rows gᵢ by a backward pass each, G by all of J and of the
loss's Hessian. H v is compared twice, with a double backward pass and with differences
of the gradient at two steps, in which PyTorch's second derivatives have no part
("H v, Δ"). These tell nothing where a kink is near θ (the PReLU of UNet), and less
where a module detaches a part (Performer). "own L" is the loss that the model itself
returns.

A model marked 32 computes a part in float32, whatever its parameters are, and has the
digits of that; the reference leaves its casts out. PyTorch's own double backward pass
is wrong for the fused weight norm of TCN, and fails for Mamba: differences take its
place.

{facts}
"""


def page(stored):
    """Return the page of what was stored."""
    heads = [*QUANTITIES, DIFFERENCES, OWN]
    names = [*QUANTITIES, "H v, Δ", "own L"]
    lines = [
        "| Model | Package | D | " + " | ".join(names) + " |",
        "| --- " * (3 + len(names)) + "|",
    ]
    notes = []
    for row in stored["rows"]:
        cells = []
        for quantity in heads:
            text = row["refused"].get(quantity)
            if text is not None and text not in notes:
                notes.append(text)
            off = row["errors"].get(quantity)
            refused = "" if text is None else f"refused [{notes.index(text) + 1}]"
            cells.append(refused if off is None else f"{off:.0e}" if off else "0")
        mark = " (32)" if row.get("precision") == "float32" else ""
        package = f"{row['package']} {row['version']}"
        lines.append(
            f"| {row['model']}{mark} | {package} | {row['n_params']} | "
            + " | ".join(cells)
            + " |"
        )
    facts = ", ".join(
        f"{name} {stored['versions'][name]}" for name in ("flatmin", "torch", "python")
    )
    head = HEAD.format(
        command=stored["command"],
        stored="../benchmarks/results/published_models.json",
        facts=f"{stored['processor']}; {facts}; revision {stored['revision'][:7]}.",
    )
    said = [f"{i}. {text}" for i, text in enumerate(notes, 1)]
    return "\n".join(
        [head, *lines, "", "What is refused, in flatmin's words:", "", *said, ""]
    )


def main():
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=PUBLISHED, default=[*PUBLISHED])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=None)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # theirs, of what they deprecate
    stored = {
        "format": FORMAT,
        "revision": revision("flatmin", "benchmarks/*.py") if arguments.json else None,
        "command": command(),
        "processor": processor(),
        "versions": versions(),
        "seed": 0,
        "rows": [],
    }
    failed = False
    for name in arguments.models:
        package = PUBLISHED[name][0]
        try:
            version(package)
        except PackageNotFoundError:
            print(f"{name}: {package} is not installed")
            continue
        row = measure(name)
        stored["rows"].append(row)
        failed |= bool(wrong(row))
        offs = ", ".join(f"{q} {off:.0e}" for q, off in row["errors"].items())
        print(f"{name} ({package}): {offs or 'refused'}", flush=True)
        for text, quantities in by_text(row["refused"]).items():
            print(f"  {', '.join(quantities)} refused: {text}")
        if wrong(row):
            print(f"  WRONG: {', '.join(wrong(row))}")
    if arguments.json is not None:
        text = json.dumps(stored, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if arguments.page is not None:
        arguments.page.write_text(page(stored), encoding="utf-8")
    sys.exit(1 if failed else 0)


def by_text(refused):
    """Return the quantities of each text."""
    found = {}
    for quantity, text in refused.items():
        found.setdefault(text, []).append(quantity)
    return found


if __name__ == "__main__":
    main()
