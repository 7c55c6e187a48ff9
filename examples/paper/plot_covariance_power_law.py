"""
Is the gradient covariance the Hessian, or a power of it?
=========================================================

Equation 7 of arXiv 1803.00195 takes Σ ≈ H near a minimum. Zhang, Yang and Tu (arXiv
2602.05600) find instead that the diagonal of Σ grows as a power of that of H, layer by
layer: Σᵢᵢ ∝ Hᵢᵢ^γ with γ between 1 and 2.

*Protocol.* 1000 Fashion-MNIST images with right and 200 with random labels, a LeNet of
11,330 parameters, SGD at 0.07 with m = 20 from PyTorch's initialisation; γ of each
layer after 1000, 5000 and 20,000 iterations, three seeds. The exponent is the slope of
log Σᵢᵢ on log Hᵢᵢ over the coordinates whose Hᵢᵢ is clear of 0.

*Rule, fixed before the numbers*, at the last iteration. Σ is proportional to H in a
layer if the 95 % interval of γ over seeds lies between 0.9 and 1.1, and a power law as
in the reference if it lies between 1 and 2. *Reproduced*: all layers with an interval;
*partly*: some; else *not*.

Without ``--full`` a short version shows in less than a minute that all works; it says
nothing about the claim.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from _claims import Claim, graded, interval, shown
from _record import obtain, parse_arguments, resumed, save_figure

from flatmin import NoisyDiffusionClassifier
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.measures import covariance_exponents
from flatmin.modules import LeNet

LR, BATCH_SIZE = 0.07, 20

FULL = {"stops": [1000, 5000, 20_000], "n_seeds": 3, "max_matvecs": 400}
FULL |= {"clean": 1000, "corrupt": 200}
SHORT = {"stops": [50, 100], "n_seeds": 2, "max_matvecs": 100}
SHORT |= {"clean": 100, "corrupt": 20}


# %%
# A run
# -----


def run(seed, sizes):
    """Return the loss and the exponents of the layers at each stop."""
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    found = []
    for stop in sizes["stops"]:
        # Anew, along the same path: a fit that goes on would draw its batches again.
        model = NoisyDiffusionClassifier(
            LeNet,
            method="sgd",
            lr=LR,
            batch_size=BATCH_SIZE,
            max_iter=stop,
            record_every=sizes["stops"][0],
            random_state=seed,
        ).fit(data.data, data.target)
        risk = model.risk_
        laws = covariance_exponents(
            risk, risk.params(), max_matvecs=sizes["max_matvecs"]
        )
        layers = {
            name: {
                "exponent": law.exponent,
                "correlation": law.correlation,
                "n_points": law.n_points,
            }
            for name, law in laws.items()
        }
        found.append(
            {
                "iteration": stop,
                "loss": float(risk.value(risk.params())),
                "layers": layers,
                "left_out": laws.left_out,
            }
        )
    return {"stops": found}


def experiment(arguments):
    sizes = FULL if arguments.full else SHORT
    runs = []
    for seed in range(arguments.seed, arguments.seed + sizes["n_seeds"]):
        runs.append(resumed(arguments, f"seed{seed}", run, seed, sizes)["stops"])
        print(f"seed {seed}: {runs[-1][-1]['layers']}", flush=True)
    return {**sizes, "lr": LR, "batch_size": BATCH_SIZE, "runs": runs}


# %%
# The verdict
# -----------


def exponents(result, stop):
    """Return γ over seeds by layer, at a stop; layers with two seeds or more."""
    found = {}
    for record in (run[stop] for run in result["runs"]):
        for name, layer in record["layers"].items():
            found.setdefault(name, []).append(layer["exponent"])
    return {name: values for name, values in found.items() if len(values) > 1}


def claims(result):
    """Judge Σ ∝ H and the power law."""
    found = {name: interval(v) for name, v in exponents(result, -1).items()}
    is_one = [low > 0.9 and high < 1.1 for _, low, high in found.values()]
    is_power = [low > 1 and high < 2 for _, low, high in found.values()]
    text = "γ by layer: " + "; ".join(
        f"{name} {shown(*values, digits=2)}" for name, values in found.items()
    )
    return [
        Claim(
            "equation 7",
            "Σ ≈ H in a network that SGD has trained (here: their diagonals)",
            graded(all(is_one), any(is_one)),
            text,
        ),
        Claim(
            "not in the paper (arXiv 2602.05600)",
            "Σᵢᵢ ∝ Hᵢᵢ^γ in each layer, with γ between 1 and 2",
            graded(all(is_power), any(is_power)),
            text,
        ),
    ]


# %%
# Table and picture
# -----------------


def print_table(result):
    for i, stop in enumerate(result["stops"]):
        loss = np.mean([run[i]["loss"] for run in result["runs"]])
        print(f"\nafter {stop} iterations, training loss {loss:.3g}")
        for name, values in exponents(result, i).items():
            layers = [run[i]["layers"].get(name) for run in result["runs"]]
            r = np.mean([layer["correlation"] for layer in layers if layer])
            print(f"{name:12} γ = {shown(*interval(values))}, correlation {r:.2f}")


def draw(result):
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = list(exponents(result, -1))
    palette = sns.color_palette("colorblind", len(names))
    for name, color in zip(names, palette, strict=True):
        own = [exponents(result, i).get(name) for i in range(len(result["stops"]))]
        there = [(s, v) for s, v in zip(result["stops"], own, strict=True) if v]
        x = [stop for stop, _ in there]
        ax.plot(x, [np.mean(v) for _, v in there], "-", color=color, label=name)
        for stop, values in there:
            ax.plot([stop] * len(values), values, "o", ms=4, color=color, alpha=0.6)
    ax.axhline(1, color="0.5", ls=":", zorder=0)
    ax.axhline(2, color="0.5", ls=":", zorder=0)
    ax.set(xscale="log", xlabel="iterations of SGD")
    ax.set_ylabel(r"$\gamma$ in $\Sigma_{ii} \propto H_{ii}^\gamma$")
    if names:
        ax.legend(frameon=False, ncols=2, fontsize="small")
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
