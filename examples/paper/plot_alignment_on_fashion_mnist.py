"""
Hessian and gradient covariance while SGD trains on Fashion-MNIST
=================================================================

Figure 4 of arXiv 1803.00195: the 20 leading eigenvalues of the Hessian H and of the
gradient covariance Σ of a small convolutional network, and how much of the leading
eigenspace of the one lies in that of the other while SGD trains: the projection
residual e = k - ‖UᵀV‖²_F, which is 0 for equal spaces and about k for random ones.

The protocol here: 1000 images with right and 200 with random labels, a LeNet of 11,330
parameters, PyTorch's initialisation, pixels in [0, 1]; SGD at 0.07 with m = 20, 20,000
iterations from the initialisation (the paper does not say how many), three seeds; Σ is
that of single examples. Beside the residual stand what random subspaces have, the
overlap 1 - e/k, and Tr(HΣ) over Tr(H)Tr(Σ)/D, which is 1 for noise without direction;
at the end also for each layer.

*Rule, fixed before the numbers.* Late is the last third of the records. The residual is
*small* if the 95 % interval over seeds of its late mean lies below half of what random
subspaces have, and *stable* if that of its late change, from the first to the second
half of these records, lies within a tenth of k on both sides. *Reproduced*: both;
*partly*: one. Noise follows the curvature if the interval of the late mean of
log₁₀ of Tr(HΣ) over its isotropic reference lies above 1: an order of magnitude.

Without ``--full`` a short version shows in less than a minute that all works; it says
nothing about the claim.
"""

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from _claims import Claim, graded, interval, shown
from _record import obtain, parse_arguments, resumed, save_figure
from matplotlib.ticker import MaxNLocator

from flatmin import NoisyDiffusionClassifier
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.measures import alignment
from flatmin.modules import LeNet

LR, BATCH_SIZE = 0.07, 20

FULL = {"n_iter": 20_000, "record_every": 1000, "n_seeds": 3, "k": 20}
FULL |= {"clean": 1000, "corrupt": 200}
SHORT = {"n_iter": 20, "record_every": 20, "n_seeds": 1, "k": 3}
SHORT |= {"clean": 50, "corrupt": 10}


# %%
# A run
# -----


class Alignments:
    """A metric that keeps all that it has measured."""

    def __init__(self, k):
        self.measure = partial(alignment, k=k)
        self.found = []

    def __call__(self, risk, theta):
        self.found.append(self.measure(risk, theta))
        return self.found[-1].residual


def run(seed, sizes):
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    alignments = Alignments(sizes["k"])
    model = NoisyDiffusionClassifier(
        LeNet,
        method="sgd",
        lr=LR,
        batch_size=BATCH_SIZE,
        max_iter=sizes["n_iter"],
        record_every=sizes["record_every"],
        metrics={"residual": alignments},
        random_state=seed,
    ).fit(data.data, data.target)
    rows = model.history_[["iteration", "loss", "train_score"]].to_dict("list")
    frames = [found.to_frame()["value"] for found in alignments.found]
    names = {
        "residual": "projection residual",
        "overlap": "overlap",
        "gain": "anisotropy gain",
        "trace_product": "Tr(HΣ)",
        "hessian_trace": "Tr(H)",
        "covariance_trace": "Tr(Σ)",
    }
    rows |= {key: [float(f[name]) for f in frames] for key, name in names.items()}
    last = alignments.found[-1]
    pairs = last.pairs_to_frame()
    return {
        "rows": rows,
        "random_residual": last.random_residual,
        "undefined": [found.undefined for found in alignments.found],
        "eigenvalues": pairs[["hessian", "covariance"]].to_dict("list"),
        "layers": layers(model, sizes["k"]),
    }


def layers(model, k):
    """Return the alignment within the weights of each layer at the end."""
    found = {}
    for name, shape in zip(
        model.risk_.layout.names, model.risk_.layout.shapes, strict=True
    ):
        if len(shape) > 1:
            of_layer = alignment(model.risk_, model.risk_.params(), k, select=name)
            frame = of_layer.to_frame()["value"]
            found[name] = {
                "n_params": int(np.prod(shape)),
                "residual": float(frame["projection residual"]),
                "random_residual": float(frame["projection residual, random"]),
                "gain": float(frame["anisotropy gain"]),
            }
    return found


def experiment(arguments):
    sizes = FULL if arguments.full else SHORT
    runs = []
    for seed in range(arguments.seed, arguments.seed + sizes["n_seeds"]):
        runs.append(resumed(arguments, f"seed{seed}", run, seed, sizes))
        print(f"seed {seed}: residual {runs[-1]['rows']['residual'][-1]}", flush=True)
    return {**sizes, "lr": LR, "batch_size": BATCH_SIZE, "runs": runs}


# %%
# The verdict
# -----------


def claims(result):
    """Judge what figure 4 says."""
    residuals = late_records(result, "residual")
    small = interval(np.nanmean(residuals, axis=1))
    first, second = np.array_split(residuals, 2, axis=1)
    change = interval(np.nanmean(second, axis=1) - np.nanmean(first, axis=1))
    random = result["runs"][0]["random_residual"]
    is_small = small[2] < random / 2
    is_stable = max(abs(change[1]), abs(change[2])) < result["k"] / 10
    gain = interval(np.nanmean(np.log10(late_records(result, "gain")), axis=1))
    return [
        Claim(
            "figure 4",
            "the projection residual of the leading eigenspaces of H and Σ becomes "
            "small and stable",
            graded(is_small and is_stable, is_small or is_stable),
            f"residual {shown(*small)} of {random:.1f} for random subspaces; late "
            f"change {shown(*change, digits=2)}",
        ),
        Claim(
            "section 4",
            "the noise of SGD follows the curvature: Tr(HΣ) is far above that of "
            "isotropic noise",
            graded(gain[1] > 1, gain[1] > 0),
            "Tr(HΣ) D/(Tr H Tr Σ) = " + shown(*(10**x for x in gain)),
        ),
    ]


# %%
# Table and picture
# -----------------


def late_records(result, name):
    """Return the last third of the records, shape (n_seeds, n_records)."""
    rows = np.array([run["rows"][name] for run in result["runs"]], dtype=float)
    return rows[:, -(rows.shape[1] // 3) :]


def print_table(result):
    k = result["k"]
    print(f"Means over the last third of the records; k = {k}.")
    baseline = result["runs"][0]["random_residual"]
    print(f"residual of random subspaces: {baseline:.2f}")
    names = ["residual", "overlap", "gain", "loss", "train_score"]
    table = pd.DataFrame(
        {name: np.nanmean(late_records(result, name), axis=1) for name in names}
    )
    table.index = [f"seed {result['seed'] + i}" for i in range(len(table))]
    print(table.to_string(float_format="{:.4g}".format))
    print("\nAt the end, by layer (means over seeds):")
    layers = [pd.DataFrame(run["layers"]).T for run in result["runs"]]
    mean = pd.concat(layers).astype(float).groupby(level=0, sort=False).mean()
    print(mean.to_string(float_format="{:.4g}".format))


def draw(result):
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    spectrum, residual, gain = axes
    colors = {"hessian": "#0173b2", "covariance": "#d55e00"}
    index = np.arange(1, result["k"] + 1)
    for i, run in enumerate(result["runs"]):
        alpha = 0.35 if i else 1.0
        for name, label in (("hessian", "H"), ("covariance", "Σ")):
            values = np.array(run["eigenvalues"][name], dtype=float)
            spectrum.plot(
                index, values / values[0], "o-", ms=3, lw=1, color=colors[name],
                alpha=alpha, label=None if i else label,
            )  # fmt: skip
        rows = run["rows"]
        residual.plot(rows["iteration"], rows["residual"], color="black", alpha=alpha)
        gain.plot(rows["iteration"], rows["gain"], color="black", alpha=alpha)
    residual.axhline(
        result["runs"][0]["random_residual"], color="0.5", ls=":", label="random"
    )
    gain.axhline(1, color="0.5", ls=":", label="isotropic")
    spectrum.set(xlabel="i", ylabel="i-th eigenvalue / first", yscale="log")
    residual.set(xlabel="iteration", ylabel="projection residual e", ylim=(0, None))
    gain.set(xlabel="iteration", ylabel="Tr(HΣ) D / (Tr H Tr Σ)", yscale="log")
    for ax in axes:
        ax.legend(frameon=False)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    sns.despine(figure)
    return figure


# %%
def main(argv=None):
    arguments = parse_arguments(__doc__, argv)
    result = obtain(arguments, experiment)
    print_table(result)
    save_figure(draw(result), arguments)


if __name__ == "__main__":
    main()
