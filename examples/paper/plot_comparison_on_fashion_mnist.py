"""
The dynamics of the paper on 1200 Fashion-MNIST images
======================================================

Section 5.1 of arXiv 1803.00195 runs gradient descent on 1000 images with correct and
200 with wrong labels until the training loss is nearly zero, and then continues with
noise of different shapes from there (figure 5).
Its claim: SGD, GLD leading and GLD Hessian move on to flatter minima that generalise
better; GD, GLD const, GLD dynamic and GLD diagonal stay.

*Protocol.* A LeNet of 11,330 parameters, PyTorch's initialisation, pixels in [0, 1]; GD
for 3000 iterations at 0.1; then 2000 iterations of each law at 0.03 with m = 20 and
k = 20. Beside the paper's laws stand noise with all of SGD's covariance, with that of
the Gauss-Newton matrix and of the Fisher information, and controls: the first
eigenvector of H, a random subspace, SGD's eigenvalues on other eigenvectors. A seed
draws the images, the wrong labels, the initialisation and the noise, and all methods
share it, so that differences are paired: eight seeds, six for the laws that need
eigenpairs. With ``--rates`` also GD, SGD, its Gaussian twin and SVAG, whose noise goes
from SGD's to Gaussian, at 0.01, 0.05 and the paper's 0.07.

*Confounders.* Noise holds the training loss up, and the curvature of the cross-entropy
vanishes with the loss. So an end point is also *quenched*: 500 iterations of GD at
0.03, without noise, lead to the bottom of the basin it lies in; and once more, from the
same point, to a training loss of 0.002 for all, below that of GD's own end in a first
pass: flat basins converge more slowly, and what is left of the loss may pass for
curvature. A unit that is below it before, or does not reach it, says so.

*Rule, fixed before the numbers.* *Reproduced*: the paired 95 % interval of the
difference from GD excludes 0 in the claimed direction, and the effect is at least 0.5
points of test accuracy, or a fifth of GD's sharpness. *Partly*: one of the two, in that
direction. Else *not*. It is judged with the noise, after the quench, and at equal loss.
A law that is said to stay does if its interval lies within those bounds on both sides.

The result of a unit, a method with a seed, is written when it ends, and a second call
goes on where the first stopped. Without ``--full`` a short version shows in less than a
minute that all works; it says nothing about the claim.
"""

# %%
import argparse
import os
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from _claims import Claim, shown

from flatmin import NoisyDiffusionClassifier, expected_sharpness
from flatmin.comparison import ComparisonResult, compare_dynamics, merge_comparisons
from flatmin.curvature import covariance_trace
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.measures import (
    adaptive_expected_sharpness,
    max_eigenvalue,
    trace_hessian_covariance,
    trace_sharpness,
)
from flatmin.modules import LeNet

STAY = ("gld_const", "gld_dynamic", "gld_diagonal")
MOVE = ("sgd", "gld_leading", "gld_hessian")
TWINS = ("gld_full", "gld_ggn", "gld_fisher")
CONTROLS = ("gld_first_eigenvector", "gld_random_subspace", "gld_shuffled")
METHODS = ("gd", *STAY, *MOVE, *TWINS, *CONTROLS)
CHEAP = ("gd", *STAY, "sgd", "gld_full", "gld_ggn")  # no eigenpairs are needed
WARMUP_LR, LR, BATCH_SIZE = 0.1, 0.03, 20
RATES = (0.01, 0.05, 0.07)
# At other rates, and at LR too: is the noise of minibatches Gaussian enough?
AT_RATES = {name: {"method": name} for name in ("gd", "sgd", "gld_full")}
AT_RATES["svag"] = {"method": "svag", "method_params": {"n_substeps": 4}}

# Images with right and with wrong labels and for the test, iterations, k, and draws of
# the sharpness along a run: there are ten times as many at its end, where it is judged,
# and products with H for each of the other measures.
FULL = {"clean": 1000, "corrupt": 200, "test": 10_000, "components": 20}
FULL |= {"warmup": 3000, "noise": 2000, "quench": 500, "every": 100, "draws": 30}
FULL |= {"matvecs": 200}
SHORT = {"clean": 200, "corrupt": 40, "test": 500, "components": 5}
SHORT |= {"warmup": 60, "noise": 20, "quench": 10, "every": 10, "draws": 2}
SHORT |= {"matvecs": 10}
QUENCH_LOSS, QUENCH_LOSS_ITER = 0.002, 6000

# What is claimed to differ from GD: in which direction, and by how much at least.
CLAIMS = {"valid_score": (1, 0.005), "end_sharpness": (-1, 0.2)}
# What is judged, with names for people.
TITLES = {"valid_score": "test accuracy", "end_sharpness": "sharpness"}
PHASES = ("noise", "quench", "quench_loss")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="the whole protocol")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, metavar="NAME", help="which laws"
    )
    parser.add_argument(
        "--rates", action="store_true", help="also GD, SGD, its twin and SVAG at others"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--n-jobs", type=int, default=1, metavar="J")
    parser.add_argument(
        "--output", type=Path, default=Path("fashion-mnist-output"), metavar="DIR"
    )
    parser.add_argument("--plot-only", action="store_true", help="draw what is there")
    parsed = parser.parse_args(arguments)
    if parsed.methods is None:
        parsed.methods = METHODS if parsed.full else ("gd", "gld_dynamic", "sgd")
    return parsed


# %%
# What is compared, and on what
# -----------------------------


def load(seed, sizes):
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    test = slice(sizes["test"])
    return data.data, data.target, data.data_test[test], data.target_test[test]


class Measure:
    """A measure with its settings; the same draws for every network."""

    def __init__(self, measure, **settings):
        self.measure = measure
        self.settings = settings

    def __call__(self, risk, theta):
        return self.measure(risk, theta, **self.settings)

    def __repr__(self):
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.measure.__name__}({settings})"


def make_methods(arguments):
    methods = {name: {"method": name} for name in arguments.methods}
    if arguments.rates:
        methods["svag"] = AT_RATES["svag"]
        for lr in RATES:
            methods |= {
                f"{n} at {lr}": {**own, "lr": lr} for n, own in AT_RATES.items()
            }
    return methods


def compare(methods, seeds, arguments, on_unit):
    sizes = FULL if arguments.full else SHORT
    classifier = NoisyDiffusionClassifier(
        LeNet,
        lr=LR,
        max_iter=sizes["noise"],
        batch_size=BATCH_SIZE,
        n_components=sizes["components"],
        warmup_iter=sizes["warmup"],
        warmup_lr=WARMUP_LR,
        record_every=sizes["every"],
        device=arguments.device,
    )
    draws, matvecs = sizes["draws"], sizes["matvecs"]
    return compare_dynamics(
        methods,
        partial(load, sizes=sizes),
        estimator=classifier,
        n_seeds=seeds,
        metrics={
            "sharpness": Measure(expected_sharpness, n_draws=draws),
            "adaptive_sharpness": Measure(adaptive_expected_sharpness, n_draws=draws),
            "covariance_trace": covariance_trace,
        },
        end_metrics={
            "end_sharpness": Measure(expected_sharpness, n_draws=10 * draws),
            "end_adaptive_sharpness": Measure(
                adaptive_expected_sharpness, n_draws=10 * draws
            ),
            "max_eigenvalue": Measure(max_eigenvalue),
            "trace_sharpness": Measure(trace_sharpness, max_matvecs=matvecs),
            "trace_hessian_covariance": Measure(
                trace_hessian_covariance, max_matvecs=matvecs
            ),
        },
        quench=sizes["quench"],
        quench_lr=LR,
        quench_loss=QUENCH_LOSS if arguments.full else 1.4,
        quench_loss_iter=QUENCH_LOSS_ITER if arguments.full else 60,
        n_jobs=arguments.n_jobs,
        memory=str(arguments.output / "warm-ups"),
        on_unit=on_unit,
        verbose=True,
    )


# %%
# All units, each in a file of its own
# ------------------------------------


def path_of(folder, method, seed):
    return folder / f"{method.replace(' ', '_')}_seed{seed}.json"


def experiment(arguments, units):
    methods = make_methods(arguments)
    # Seeds that miss the same methods run together: in a first call, all of them.
    missing = defaultdict(list)
    for seed in arguments.seeds:
        left = [name for name in methods if not path_of(units, name, seed).exists()]
        missing[tuple(left)].append(seed)

    def write(unit):
        # A collapse is an outcome. What else a machine may do to a unit is tried again.
        if unit.failures["error"].eq("DivergenceError").all():
            unit.to_json(path_of(units, unit.methods[0], unit.seeds[0]))
        else:
            print(unit.failures.to_string(index=False))

    for names, seeds in missing.items():
        if names:
            compare({n: methods[n] for n in names}, seeds, arguments, write)


def collect(arguments, units):
    """Return what is there of the methods and seeds that were asked for."""
    paths = [
        path_of(units, method, seed)
        for method in make_methods(arguments)
        for seed in arguments.seeds
    ]
    found = [ComparisonResult.from_json(path) for path in paths if path.exists()]
    if not found:
        raise SystemExit(f"There are no results in {units}: run without --plot-only.")
    return add_matched_trace(merge_comparisons(found))


def add_matched_trace(result):
    """Add Tr(C) m / Tr(Σ), which is 1 where the noise is of the size of SGD's."""
    table = result.table
    ratio = BATCH_SIZE * table["noise_norm"] ** 2 / table["covariance_trace"]
    ratio = ratio.where(table["phase"] == "noise")
    return replace(result, table=table.assign(trace_ratio=ratio))


# %%
# The table, the verdict and the picture
# --------------------------------------


def verdict(row):
    """Judge the difference of a law from GD by the rule above."""
    direction, least = CLAIMS[row["column"]]
    if row["column"] == "end_sharpness":
        least *= row["mean of gd"]
    law = row["method"].split()[0]
    if not np.isfinite(row["low"]):
        return ""  # fewer than two pairs
    if law in STAY:
        within = -least < row["low"] and row["high"] < least
        return "reproduced" if within else "not"
    effect = direction * row["difference"]
    certain = min(direction * row["low"], direction * row["high"]) > 0
    if law not in MOVE:
        return ""
    if effect <= 0 or not (certain or effect >= least):
        return "not"
    return "reproduced" if certain and effect >= least else "partly"


def judge(result):
    """Return the differences from GD, and verdicts on what the paper says of a law."""
    summary = result.summary("gd", columns=list(CLAIMS)).reset_index()
    summary = summary[summary["method"] != "gd"].copy()
    # Of the seeds that both have.
    summary["mean of gd"] = summary["mean"] - summary["difference"]
    summary["verdict"] = [verdict(row) for _, row in summary.iterrows()]
    return summary


SAYS = {
    ("valid_score", True): "generalises better than GD",
    ("valid_score", False): "generalises as GD does",
    ("end_sharpness", True): "finds a flatter minimum than GD",
    ("end_sharpness", False): "stays in a minimum as sharp as GD's",
}


def claims(result):
    """Return what the claim on each law came to, with the noise and after it."""
    table = judge(result).query("verdict != ''")
    found = []
    for (column, law), rows in table.groupby(["column", "method"], sort=False):
        texts = {row["phase"]: difference(row) for _, row in rows.iterrows()}
        verdicts = dict(zip(rows["phase"], rows["verdict"], strict=True))
        if "noise" in texts:
            after = {"quench": "quenched", "quench_loss": "at one loss"}
            moves = law.split()[0] in MOVE
            found.append(
                Claim(
                    "figure 5",
                    f"{law} {SAYS[column, moves]}",
                    verdicts["noise"],
                    texts["noise"],
                    "; ".join(
                        f"{title}: **{verdicts[phase]}**, {texts[phase]}"
                        for phase, title in after.items()
                        if phase in texts
                    ),
                )
            )
    return found


def difference(row):
    """Return a difference from GD as text: points, or a share of GD's sharpness."""
    scale, unit = 100, "points"
    if row["column"] == "end_sharpness":
        scale, unit = 100 / row["mean of gd"], "%"
    values = (scale * row[name] for name in ("difference", "low", "high"))
    return f"{shown(*values, digits=2)} {unit}, n = {row['n']}"


def print_tables(result):
    ends = result.ends()
    columns = ["train_score", "valid_score", "loss", "end_sharpness"]
    columns += ["end_adaptive_sharpness", "max_eigenvalue", "trace_sharpness"]
    columns += ["trace_hessian_covariance", "distance", "trace_ratio"]
    order = pd.MultiIndex.from_product([["start", *PHASES], result.methods])
    means = ends.groupby(["phase", "method"])[columns].mean().reindex(order)
    print(f"Means over the seeds {result.seeds}.")
    print(means.to_string(float_format="{:.4f}".format))
    if len(result.failures):
        print("\nUnits that did not come to their end:")
        print(result.failures.drop(columns="seconds").to_string(index=False))
    if "gd" in result.methods and len(result.methods) > 1:
        columns = ["difference", "low", "high", "p_value", "p_holm", "n", "n_failed"]
        columns += ["n_left_out", "verdict"]
        shown = judge(result).set_index(["column", "phase", "method"])[columns]
        print("\nPaired differences from gd, with 95 % intervals:")
        print(shown.to_string(float_format="{:.4f}".format))


def draw(result):
    """Return the figure: the runs, and how they differ from GD at their ends."""
    methods = [name for name in result.methods if " at " not in name]
    # Cool colours stay, by the claim, and warm ones move.
    palette = ["black", "#0173b2", "#56b4e9", "#029e73", "#d55e00", "#de8f05"]
    palette += ["#cc3311", "#cc78bc"]
    colors = dict(zip(["gd", *STAY, *MOVE, "gld_full"], palette, strict=True))
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, axes = plt.subplots(
            2, 3, figsize=(14, 8), width_ratios=[4, 4, 4], layout="constrained"
        )
        panels = {
            "valid_score": (axes[0, 0], "test accuracy"),
            "sharpness": (axes[1, 0], "expected sharpness, s = 0.01"),
            "loss": (axes[0, 1], "training loss"),
            "distance": (axes[1, 1], r"distance from $\theta_{GD}$"),
        }
        for column, (ax, label) in panels.items():
            draw_curves(ax, result, column, [n for n in methods if n in colors], colors)
            ax.set(ylabel=label)
        axes[0, 0].set_title("bands: standard error of the difference", loc="left")
        for ax in axes[1, :2]:
            ax.set_xlabel(r"iterations from $\theta_{GD}$")
        if "gd" in methods and len(methods) > 1:
            for ax, column in zip(axes[:, 2], CLAIMS, strict=True):
                draw_differences(ax, judge(result), column, methods, colors)
            axes[0, 2].set_title("○ with noise  ● quenched  ◆ at one loss", loc="left")
        shown = {name: color for name, color in colors.items() if name in methods}
        handles = [plt.Line2D([], [], color=c, lw=2, label=n) for n, c in shown.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=8, frameon=False
        )
        sns.despine(figure)
    return figure


def draw_curves(ax, result, column, methods, colors):
    """Draw means over seeds, with bands of what pairing leaves of their spread."""
    rows = result.table[result.table["phase"].isin(["noise", "quench"])]
    # The quench begins on the last row of the noise.
    rows = rows.drop_duplicates(["method", "seed", "iteration"])
    values = rows.pivot(index="iteration", columns=["method", "seed"], values=column)
    if column == "loss":
        values = np.log(values)
        ax.set_yscale("log")
    for name in methods:
        own = values[name]
        if "gd" in methods:
            # An image set is easy or hard for all methods alike.
            own = own - values["gd"] + values["gd"].mean(axis=1).to_numpy()[:, None]
        mean, error = own.mean(axis=1), own.sem(axis=1).fillna(0)
        lines = [mean, mean - error, mean + error]
        if column == "loss":
            lines = np.exp(lines)
        ax.plot(mean.index, lines[0], color=colors[name], lw=1.8)
        ax.fill_between(mean.index, *lines[1:], color=colors[name], alpha=0.2, lw=0)
    switch_off = rows.loc[rows["phase"] == "noise", "iteration"].max()
    ax.axvspan(switch_off, values.index.max(), color="0.93", lw=0, zorder=0)
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate("quench", (switch_off, 0.02), xytext=(3, 0), color="0.4", **place)


def draw_differences(ax, summary, column, methods, colors):
    """Draw the paired differences from GD: with the noise, after it, at one loss."""
    part = summary[summary["column"] == column].set_index(["phase", "method"])
    names = [name for name in methods if name != "gd"]
    for i, name in enumerate(names):
        color = colors.get(name, "0.45")
        marks = (("noise", "o", "white"), ("quench", "o", color))
        for shift, (phase, mark, fill) in zip(
            (0.25, 0, -0.25), (*marks, ("quench_loss", "D", color)), strict=True
        ):
            if (phase, name) in part.index:
                row = part.loc[(phase, name)]
                y = len(names) - i + shift
                ax.plot([row["low"], row["high"]], [y, y], color=color, lw=1.5)
                ax.plot(row["difference"], y, mark, color=color, mfc=fill, ms=4.5)
    ax.axvline(0, color="0.5", lw=1, zorder=0)
    direction, least = CLAIMS[column]
    if column == "end_sharpness":
        least *= part.loc["quench", "mean of gd"].mean()
    ax.axvline(direction * least, color="0.5", lw=1, ls=":", zorder=0)
    ax.set(yticks=range(len(names), 0, -1), yticklabels=names)
    ax.set_xlabel(f"{TITLES[column]} less that of gd")


# %%
def main():
    arguments = parse_arguments()
    units = arguments.output / ("full" if arguments.full else "short")
    units.mkdir(parents=True, exist_ok=True)
    # In the workers too: convolutions on a GPU else keep three digits.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if not arguments.plot_only:
        experiment(arguments, units)
    result = collect(arguments, units)
    result.to_json(units.with_suffix(".json"))
    print_tables(result)
    path = units.with_suffix(".png")
    draw(result).savefig(path, dpi=150)
    print(f"\nThe picture: {path}")


if __name__ == "__main__":
    main()
