"""
What of the paper holds: the report, made from the stored results
=================================================================

``python examples/paper/report.py`` reads every result under ``benchmarks/results``,
judges each claim by the rule in its script, and writes ``docs/reproduction.md``. Units
that have not been run are listed there. Nothing is run, and no number is kept but those
of the results: ``--check`` says whether the report is that of the results.
"""

# %%
import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from _claims import VERDICTS
from _findings import (
    Finding,
    read_comparison,
    read_edge,
    read_file,
    read_rmsprop,
    read_sizes,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
REPORT = ROOT / "docs" / "reproduction.md"


@dataclass(frozen=True)
class Section:
    """An experiment in the report."""

    title: str
    script: str
    path: str  # of its results, within RESULTS
    protocol: str
    read: Callable[[Path, object], Finding]
    pictures: tuple[str, ...] = ()
    note: str = ""


# %%
# The sections, in the order of the paper
# ---------------------------------------

SECTIONS = (
    Section(
        "The covariance of the gradient and the Hessian (equations 6 and 7)",
        "plot_fisher_equals_hessian",
        "paper/fisher_equals_hessian.json",
        "Logistic regression with a known truth, N from 100 to 100,000, 20 data sets; "
        "H and Σ dense, in float64.",
        read_file,
        ("paper/fisher_equals_hessian.png",),
    ),
    Section(
        "A cubic fitted by small networks (figures 1, 2, 8 and 9)",
        "plot_cubic_regression",
        "paper/cubic_regression.json",
        "SGD with m = 5 on 20 points, 20,000 iterations, ten seeds; H and Σ dense, in "
        "float64; late is the last quarter.",
        read_file,
        ("paper/cubic_regression.png",),
    ),
    Section(
        "Escape in two dimensions (figures 3 and 10)",
        "plot_basins_2d",
        "paper/basins_2d.json",
        "10,000 runs a law from the sharp minimum. *Matched* is the text's surface at "
        "a stable η with noise of one trace; *released code* is the authors' program. "
        "As printed (η = 0.1) plain GD is unstable and leaves in every run.",
        read_file,
        ("paper/basins_2d.png",),
    ),
    Section(
        "Fashion-MNIST: Hessian and covariance during training (figure 4)",
        "plot_alignment_on_fashion_mnist",
        "paper/alignment_on_fashion_mnist.json",
        "1000 right and 200 random labels, 11,330 parameters, SGD at 0.07 with m = 20, "
        "20,000 iterations, three seeds, k = 20; late is the last third.",
        read_file,
        ("paper/alignment_on_fashion_mnist.png",),
    ),
    Section(
        "The covariance as a power of the Hessian (equation 7)",
        "plot_covariance_power_law",
        "paper/covariance_power_law.json",
        "The same images and network; SGD at 0.07 with m = 20; the slope of log Σᵢᵢ on "
        "log Hᵢᵢ in each layer, three seeds.",
        read_file,
        ("paper/covariance_power_law.png",),
    ),
    Section(
        "Fashion-MNIST: the two groups (figure 5)",
        "plot_comparison_on_fashion_mnist",
        "comparison_on_fashion_mnist",
        "The same images and network; GD for 3000 iterations at 0.1, then each law "
        "for 2000 at 0.03, m = 20, k = 20; then 500 iterations of GD at 0.03 without "
        "noise, and, from the same point, GD to a training loss of 0.002. On a CPU.",
        read_comparison,
        ("comparison_on_fashion_mnist/full.png",),
    ),
    Section(
        "The same, a first pass on a GPU (figure 5)",
        "plot_comparison_on_fashion_mnist",
        "fashion_mnist/figure5.json",
        "The same protocol without the quench to one loss, and with convolutions "
        "partly in TF32. The same seed on another device is another θ_GD, so the two "
        "are tables of their own.",
        read_comparison,
        ("fashion_mnist/figure5.png",),
    ),
    Section(
        "CIFAR-10 (figure 6)",
        "plot_comparison_on_cifar10",
        "comparison_on_cifar10",
        "A VGG11 of a quarter of the width (D = 611,434), 2,000 images, one seed; GD "
        "for 3000 iterations at 0.05, then 1500 of each law with m = 100.",
        read_comparison,
        ("comparison_on_cifar10/full.png",),
    ),
    Section(
        "From RMSProp's minimum on with SGD (figure 7)",
        "plot_rmsprop_then_sgd",
        "rmsprop_then_sgd",
        "The images and network of figure 5; RMSProp or Adam at 0.001 for 12,000 "
        "iterations, then 6000 of SGD or of the same optimizer, m = 20; 500 of GD "
        "without noise; GD to a training loss of 0.001.",
        read_rmsprop,
        ("rmsprop_then_sgd/rmsprop.png", "rmsprop_then_sgd/adam.png"),
    ),
    Section(
        "Learning rate, batch size and barriers (section 6)",
        "plot_learning_rate_and_batch_size",
        "learning_rate_and_batch_size",
        "From θ_GD of figure 5's protocol, η times the iterations held at 100, each "
        "run quenched to a training loss of 0.001.",
        read_sizes,
        ("learning_rate_and_batch_size/picture.png",),
    ),
    Section(
        "The two groups at the edge of stability",
        "plot_edge_of_stability",
        "edge_of_stability",
        "500 images, squared error, a tanh network of 3,466 parameters (digits), "
        "float64, 12,000 iterations from the initialisation: the paper's laws end "
        "at nearly one training loss; rows with another one say so. λ₁η/2 is the "
        "mean of the last third.",
        read_edge,
        ("edge_of_stability/digits-squared_error-lr1-m16.png",),
        "A law *moves* if it ends at least a fifth below GD and its interval excludes "
        "0, *stays* if its interval lies within a fifth of GD on both sides. **What "
        "the controls say:** it is the noise along H's leading eigenvectors that "
        "counts. Confined to them (`gld_full, top`) SGD's covariance moves as all of "
        "it does; confined to the rest (`gld_full, bulk`), or on random directions, "
        "it stays. Isotropic and diagonal noise scaled to SGD's Tr(HC) is no "
        "substitute: it holds the loss hundreds of times higher, or diverges. That "
        "minibatch noise is not Gaussian is not what does it, since `gld_full` and "
        "`sgd` end alike. Nor are large steps: SVAG takes the same noise towards the "
        "limit of small steps, l steps of η/l, which are stable up to λ₁η/2 = l. GD "
        "with these steps ends at nearly twice the curvature of SVAG, with l = 4 and "
        "with l = 16 (eight seeds each). GLD const has not SGD's size: late in "
        "training its noise is about five times as long.",
    ),
    Section(
        "Tr(HΣ) with one hidden layer (2019 version)",
        "plot_one_hidden_layer",
        "paper/one_hidden_layer.json",
        "1000 points, 100 ReLU units, D = 300, ten seeds; H and Σ dense, in float64.",
        read_file,
        ("paper/one_hidden_layer.png",),
    ),
    Section(
        "The size of the noise (figure 11)",
        "plot_noise_against_gradient",
        "paper/noise_against_gradient.json",
        "The images and the network of figure 4, SGD at 0.07 with m = 20, 20,000 "
        "iterations, three seeds.",
        read_file,
        ("paper/noise_against_gradient.png",),
    ),
)


# %%
# The text
# --------

LEAD = """\
<!-- Made by `python examples/paper/report.py` from the stored results: do not edit. -->

# What of the paper holds

The claims of [arXiv 1803.00195](https://arxiv.org/abs/1803.00195), tried anew, one by
one. Every row is computed from results under `benchmarks/results/`, by the rule in the
script of its experiment; `python examples/paper/report.py` makes this page again, and a
test compares the two.

- *Reproduced*, *partly*, *not*: by a rule that was fixed before the numbers for figures
  4 to 7, section 6, the edge of stability and the exponents by layer; for the others it
  was written down after them. In the first pass of figure 5 the rule for laws that stay
  came later. *Open*, and *not tested at the paper's scale*: the claim waits.
- Effects have 95 % t intervals over seeds; differences are paired by seed. Those in
  brackets are Wilson intervals over runs.
- *After the quench*: noise holds the training loss up, and the curvature of the
  cross-entropy falls with the loss. So an end point is followed by gradient descent
  without noise, for a number of steps, and to one training loss for all.
- No number is compared with the paper's: its text states no accuracy and no sharpness.
"""


def report():
    """Return the whole page."""
    sections = [(section, find(section)) for section in SECTIONS]
    parts = [LEAD, "## Claim by claim\n", counts(sections), claim_table(sections)]
    for section, finding in sections:
        parts += [f"## {section.title}\n", *describe(section, finding)]
    return "\n".join(parts).rstrip() + "\n"


def find(section):
    """Return what the results of a section say, or None if there are none."""
    path = RESULTS / section.path
    if not (path.is_file() or any(path.rglob("*.json"))):
        return None
    return section.read(path, importlib.import_module(section.script))


def counts(sections):
    """Return how many claims came to which verdict."""
    claims = [c for _, finding in sections if finding for c in finding.claims]
    found = {v: sum(c.verdict == v for c in claims) for v in VERDICTS}
    parts = [f"{n} {verdict}" for verdict, n in found.items() if n]
    waiting = [section.title for section, finding in sections if finding is None]
    text = f"{len(claims)} verdicts before the quench: {', '.join(parts)}."
    return text + (f" Not run yet: {'; '.join(waiting)}." if waiting else "") + "\n"


def claim_table(sections):
    rows = []
    for section, finding in sections:
        rows += [
            {
                "in the paper": f"[{claim.where}](#{anchor(section.title)})",
                "claim": claim.says,
                "verdict": f"**{claim.verdict}**",
                "effect": claim.effect,
                "after the quench": claim.after,
            }
            for claim in (finding.claims if finding else ())
        ]
    return markdown(pd.DataFrame(rows))


def describe(section, finding):
    """Return the paragraphs of a section."""
    script = f"../examples/paper/{section.script}.py"
    yield f"{section.protocol} {section.note}".rstrip() + "\n"
    where = f"[{section.script}.py]({script})"
    if finding is None:
        yield f"**Not run yet.** Rule and protocol: {where}.\n"
        return
    stored = f"`benchmarks/results/{section.path}`"
    if section.path.endswith(".json"):  # a site has pages and files, but no folders
        stored = f"[{section.path}](../benchmarks/results/{section.path})"
    yield f"Rule: {where}. Results: {stored}, {made_by(finding.origins)}\n"
    if finding.missing:
        yield "Not run yet: " + "; ".join(finding.missing) + ".\n"
    for picture in section.pictures:
        if (RESULTS / picture).exists():
            yield f"![{section.title}](../benchmarks/results/{picture})\n"
    for title, table in (pair for pair in finding.tables if len(pair[1])):
        yield f"{title[0].upper()}{title[1:]}:\n"
        yield markdown(table)


def made_by(origins):
    """Return commands, revisions and devices of results."""
    revisions = {str(o.get("revision") or "not recorded")[:12] for o in origins}
    devices = {str(o.get("device") or o.get("machine")) for o in origins}
    torch = {o["versions"]["torch"] for o in origins}
    commands = sorted({o["command"] for o in origins if o.get("command")})
    return (
        f"revision {', '.join(sorted(revisions))}; on {', '.join(sorted(devices))}; "
        f"PyTorch {', '.join(sorted(torch))}; by "
        + ", ".join(f"`{command}`" for command in commands)
    )


def markdown(table):
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * table.shape[1] + "|"]
    for row in table.astype(str).to_numpy():
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def anchor(title):
    """Return the name that GitHub gives to a heading."""
    kept = (c for c in title.lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")


# %%
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)
    text = report()
    if not arguments.check:
        REPORT.write_text(text, encoding="utf-8")
        print(REPORT.relative_to(ROOT))
    elif REPORT.read_text(encoding="utf-8") != text:
        sys.exit("docs/reproduction.md is not that of the results: run report.py.")


if __name__ == "__main__":
    main()
