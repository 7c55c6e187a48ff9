"""
Learning rate, batch size, and what lies between minima
=======================================================

Section 6 of arXiv 1803.00195 makes two claims without an experiment.

*Size of the noise.* With a small learning rate η or a large batch m the noise is small,
the shape of its covariance shows little, and SGD takes long to flatter minima. In
equation (4), dθ = -∇L dt + √(η/m) Σ^(1/2) dW, the two enter as η/m alone: runs with one
η/m should end alike, and those with a larger η/m flatter.

*Landscape.* SGD escapes fast, so the barrier between a minimum and its neighbours
cannot be high along sharp directions.

*Protocol.* As that of ``plot_comparison_on_fashion_mnist.py``: 1000 images with right
and 200 with wrong labels, a LeNet of 11,330 parameters, GD for 3000 iterations at 0.1
to θ_GD, and from there SGD and its Gaussian twin ``gld_full``. A seed draws images,
labels, initialisation and noise, and all runs share it: differences are paired. Seeds
20 to 23, which no pilot has used.

- η/m is *held* at 0.00125 with m = 10, 20, 40, so that η = 0.0125, 0.025, 0.05.
- η/m is *varied* at m = 20 with the same three η: from 0.000625 to 0.0025.
- GD at the three η is the control. No rate is above 0.05: SGD at 0.07 does not come
  back from where it goes.

The time of equation (4) is η times the iterations, and that is held, at 100: 8000, 4000
and 2000 iterations. With iterations held, a run at twice the rate would have gone twice
as far, whatever the noise. Each run is then quenched by GD at 0.07, for 500 iterations,
and from the same point to a training loss of 0.001. The second is what is judged: in
cross-entropy the curvature falls with the loss.

*Landscape.* From θ_GD to where the quench of 500 iterations ended, for sgd, gd,
gld_full and gld_dynamic at η = 0.025 and m = 20: the loss on the segment, and on a
quadratic Bézier curve whose middle point is trained. The barrier is the largest excess
over the straight line between the two losses, the climb that over L(θ_GD).

*Rule, fixed before the numbers*, for sgd and gld_full each, at the training loss of
0.001:

- With η/m held the runs *agree* if the paired 95 % intervals of both m = 10 and m = 40
  less m = 20 lie within log 0.8 and log 1.2 for log λ₁, and within half a point for the
  test accuracy. They *differ* if an interval excludes 0 and its mean lies beyond these
  bounds. Else it is *open*.
- With η/m varied λ₁ *falls* if the 95 % interval over seeds of the slope of log λ₁ on
  log η/m lies below 0. The slope less that of GD at the same three η says what η does
  without noise.
- The claim on the size is *reproduced* if the runs agree and λ₁ falls, *partly* if one
  of the two, else *not*.
- The claim on the landscape is *reproduced* if the climb on the trained curve is below
  what the noise holds the loss up by, its mean over the second half of the run less
  L(θ_GD): the paired interval of the difference lies below 0. *Not* if it lies above,
  else *open*.

A run that diverges, or does not come to that loss, is an outcome and is counted; what
needs it has one seed less.

Without ``--full`` a short version shows in less than a minute that all works; it says
nothing about the claims. Every unit, a run with a seed, is a file of its own, and a
second call goes on where the first stopped.
"""

# %%
import argparse
import json
import re
from functools import partial
from pathlib import Path

import _record
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from _claims import Claim, shown
from _comparison import Measure

from flatmin import NoisyDiffusionClassifier, expected_sharpness
from flatmin.comparison import (
    ComparisonResult,
    compare_dynamics,
    merge_comparisons,
    paired_difference,
)
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.measures import (
    adaptive_expected_sharpness,
    bezier_profile,
    max_eigenvalue,
    segment_profile,
)
from flatmin.modules import LeNet
from flatmin.risk import EmpiricalRisk

SEEDS = (20, 21, 22, 23)
WARMUP_LR, QUENCH_LR = 0.1, 0.07
HELD = {10: 0.0125, 20: 0.025, 40: 0.05}  # m to η
VARIED = (0.0125, 0.025, 0.05)  # η at m = 20
M, LR = 20, 0.025  # what the others are compared with
LAWS = ("sgd", "gld_full")
END = "quench_loss"  # where the claim on the size is judged

FULL = {"clean": 1000, "corrupt": 200, "test": 10_000, "draws": 200, "curve": 200}
FULL |= {"warmup": 3000, "time": 100, "quench": 500, "rows": 10}
FULL |= {"loss": 0.001, "loss_iter": 8000}
SHORT = {"clean": 30, "corrupt": 10, "test": 100, "draws": 2, "curve": 3}
SHORT |= {"warmup": 40, "time": 0.5, "quench": 5, "rows": 1}
SHORT |= {"loss": 1.2, "loss_iter": 400}


def label_of(law, lr=LR, m=M):
    return f"gd, lr={lr:g}" if law == "gd" else f"{law}, lr={lr:g}, m={m}"


def runs(full):
    """Return (law, η, m) of every run, by its label."""
    found = []
    for law in LAWS if full else LAWS[:1]:
        found += [(law, lr, m) for m, lr in HELD.items()]
        found += [(law, lr, M) for lr in VARIED if lr != LR]
        if law == "sgd":  # cheap ones first
            found += [("gd", lr, M) for lr in VARIED]
    if full:
        found.append(("gld_dynamic", LR, M))
    return {label_of(*run): run for run in found}


# %%
# The runs
# --------


def load(seed, sizes):
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    test = slice(sizes["test"])
    return data.data, data.target, data.data_test[test], data.target_test[test]


def settings_of(law, lr, m, sizes):
    n_iter = round(sizes["time"] / lr)
    return {
        "method": law,
        "lr": lr,
        "batch_size": m,
        "max_iter": n_iter,
        "record_every": n_iter // sizes["rows"],
    }


def compare(labels, seed, arguments, on_unit):
    sizes = FULL if arguments.full else SHORT
    known, draws = runs(arguments.full), sizes["draws"]
    return compare_dynamics(
        {label: settings_of(*known[label], sizes) for label in labels},
        partial(load, sizes=sizes),
        estimator=NoisyDiffusionClassifier(
            LeNet,
            lr=LR,
            batch_size=M,
            warmup={"max_iter": sizes["warmup"], "lr": WARMUP_LR},
            record_every=sizes["warmup"],
        ),
        n_seeds=[seed],
        metrics={"lambda_1": max_eigenvalue},
        end_metrics={
            "sharpness": Measure(expected_sharpness, n_draws=draws),
            "adaptive_sharpness": Measure(adaptive_expected_sharpness, n_draws=draws),
        },
        quench=sizes["quench"],
        quench_lr=QUENCH_LR,
        quench_loss=sizes["loss"],
        quench_loss_iter=sizes["loss_iter"],
        keep_params=True,
        checkpoint_dir=arguments.output / "checkpoints",
        checkpoint_every=500,
        on_unit=on_unit,
    )


# %%
# The loss between θ_GD and where a run came to
# ---------------------------------------------


def landscape(units, seed, sizes):
    """Return the profiles from θ_GD to the ends of the quench, by law."""
    X, y, _, _ = load(seed, sizes)
    risk = EmpiricalRisk(
        LeNet(), "cross_entropy", torch.as_tensor(X), torch.as_tensor(y)
    )
    found = {}
    for law, unit in units.items():
        label = label_of(law)
        ends = [unit.params(label, seed, phase) for phase in ("start", "quench")]
        curves = {
            "segment": segment_profile(risk, *ends),
            "bezier": bezier_profile(risk, *ends, n_iter=sizes["curve"]),
        }
        stored = unit.ends()["loss"].loc["start", label, seed]
        if not np.isclose(float(curves["segment"].loss[0]), stored, rtol=1e-3):
            raise ValueError(
                f"The loss at θ_GD must be that of the run, {stored:.6g}. Got "
                f"{float(curves['segment'].loss[0]):.6g}: the data are others."
            )
        found[law] = {"distance": float(np.linalg.norm(ends[1] - ends[0]))}
        for name, curve in curves.items():
            found[law][name] = {
                **curve.to_frame()["loss"]
                .rename_axis("t")
                .reset_index()
                .to_dict("list"),
                "barrier": curve.barrier,
                "height": curve.height,
                "rounding": curve.rounding,
            }
    return {"seed": seed, "laws": found}


# %%
# All units, each in a file of its own
# ------------------------------------


def path_of(arguments, label, seed):
    name = re.sub(r"[^A-Za-z0-9_.=]+", "-", label)
    return arguments.output / f"{name}-seed{seed}.json"


def landscape_path(arguments, seed):
    return arguments.output / f"landscape-seed{seed}.json"


def experiment(arguments):
    def write(unit):
        # A divergence is an outcome. What else a machine may do is tried again.
        if unit.failures["error"].eq("DivergenceError").all():
            path = path_of(arguments, unit.methods[0], unit.seeds[0])
            unit.to_json(path)
            print(path, flush=True)
        else:
            print(unit.failures.to_string(index=False), flush=True)

    for seed in arguments.seeds:
        labels = [
            label
            for label in runs(arguments.full)
            if not path_of(arguments, label, seed).exists()
        ]
        if labels:
            compare(labels, seed, arguments, write)
        between(arguments, seed)


def between(arguments, seed):
    """Store the profiles of a seed once its runs are there."""
    path, units = landscape_path(arguments, seed), {}
    for label, (law, lr, m) in runs(arguments.full).items():
        if (lr, m) == (LR, M):
            if not path_of(arguments, label, seed).exists():
                return
            unit = ComparisonResult.from_json(path_of(arguments, label, seed))
            if unit.failures.empty:
                units[law] = unit
    if not path.exists():
        sizes = FULL if arguments.full else SHORT
        _record.store(path, landscape, units, seed, sizes)
        print(path, flush=True)


def collect(arguments):
    """Return what is there: the runs, and the profiles by seed."""
    paths = [
        path_of(arguments, label, seed)
        for label in runs(arguments.full)
        for seed in arguments.seeds
    ]
    there = [ComparisonResult.from_json(path) for path in paths if path.exists()]
    if not there:
        raise SystemExit(f"No unit is in {arguments.output}: run without --plot-only.")
    profiles = {
        seed: json.loads(landscape_path(arguments, seed).read_text())["laws"]
        for seed in arguments.seeds
        if landscape_path(arguments, seed).exists()
    }
    return merge_comparisons(there), profiles


# %%
# The verdicts
# ------------

BOUNDS = {"log_lambda_1": (np.log(0.8), np.log(1.2)), "test_score": (-0.005, 0.005)}


def values_of(result, column, phase):
    """Return a column where a phase ended, a row a seed and a column a run."""
    ends = result.ends()
    ends["log_lambda_1"] = np.log(ends["lambda_1"].where(ends["lambda_1"] > 0))
    own = ends[ends.index.get_level_values("phase") == phase]
    found = own[column].droplevel("phase").unstack("method")
    return found.reindex(index=result.seeds, columns=list(runs(True)))


def agreement(found, bounds):
    """Say whether two runs are alike."""
    low, high = bounds
    if low < found.low and found.high < high:
        return "agree"
    apart = found.low > 0 or found.high < 0
    return "differ" if apart and not low <= found.mean <= high else "open"


def held(result, phase):
    """Return the differences from m = 20 with η/m held."""
    rows = []
    for law in LAWS:
        for column, bounds in BOUNDS.items():
            values = values_of(result, column, phase)
            for m, lr in HELD.items():
                label, other = label_of(law, lr, m), label_of(law)
                if m != M:
                    found = paired_difference(values[label], values[other])
                    rows.append(
                        {"law": law, "phase": phase, "column": column, "m": m}
                        | {"difference": found.mean, "low": found.low}
                        | {"high": found.high, "n": found.n}
                        | {"verdict": agreement(found, bounds)}
                    )
    return pd.DataFrame(rows)


def slopes(values, law):
    """Return the slope on log η of a column for each seed; m is 20 for all."""
    whole = values[[label_of(law, lr) for lr in VARIED]].dropna()
    x = np.log(VARIED) - np.log(VARIED).mean()
    return (whole - whole.mean(axis=1).to_numpy()[:, None]) @ x / (x @ x)


def varied(result, phase):
    """Return the slopes on log η/m at m = 20, and those less GD's."""
    rows = []
    for column in BOUNDS:
        values = values_of(result, column, phase)
        control = slopes(values, "gd")
        for law in ("gd", *LAWS):
            own = slopes(values, law)
            found = paired_difference(own, np.zeros(len(own)))
            both = own.index.intersection(control.index)
            less = paired_difference(own[both], control[both])
            falls = column == "log_lambda_1" and found.high < 0
            rows.append(
                {"law": law, "phase": phase, "column": column, "slope": found.mean}
                | {"low": found.low, "high": found.high, "n": found.n}
                | {"less gd": less.mean, "less low": less.low, "less high": less.high}
                | {"verdict": "falls" if falls else ""}
            )
    return pd.DataFrame(rows)


def lifted(result, law, seed):
    """Return by how much the noise holds the loss above L(θ_GD)."""
    runs_of = result.table.set_index(["method", "seed", "phase"]).sort_index()
    rows = runs_of.loc[(label_of(law), seed, "noise")].sort_values("iteration")
    late = rows[rows["iteration"] > rows["iteration"].max() / 2]
    return late["loss"].mean() - rows["loss"].iloc[0]


def barriers(result, profiles):
    """Return what lies between θ_GD and the ends of the runs."""
    rows = []
    for law in ("gd", "gld_dynamic", *LAWS):
        seeds = [seed for seed, laws in profiles.items() if law in laws]
        lift = [lifted(result, law, seed) for seed in seeds]
        for curve in ("segment", "bezier"):
            own = [profiles[seed][law][curve] for seed in seeds]
            climb = [max(profile["loss"]) - profile["loss"][0] for profile in own]
            found = paired_difference(climb, lift)
            verdict = ""
            if curve == "bezier" and law in LAWS:
                above = "not" if found.low > 0 else "open"
                above = above if found.n > 1 else "no interval yet"
                verdict = "reproduced" if found.high < 0 else above
            rows.append(
                {"law": law, "curve": curve}
                | {"barrier": mean_of([profile["barrier"] for profile in own])}
                | {"climb": mean_of(climb), "lift": mean_of(lift)}
                | {"low": found.low, "high": found.high, "n": found.n}
                | {"verdict": verdict}
            )
    return pd.DataFrame(rows)


def mean_of(values):
    return float(np.mean(values)) if len(values) else np.nan


def claim_on_size(held_rows, varied_rows, law):
    """Return the verdict on a law from what is judged."""
    own = held_rows[held_rows["law"] == law]
    trend = varied_rows.query("law == @law and column == 'log_lambda_1'").iloc[0]
    if min(trend["n"], own["n"].min()) < 2:
        return "no interval yet"
    agree, falls = (own["verdict"] == "agree").all(), trend["verdict"] == "falls"
    return "reproduced" if agree and falls else "partly" if agree or falls else "not"


def claims(result, profiles):
    """Return what the two claims came to, for laws with two seeds or more."""
    held_rows, varied_rows = held(result, END), varied(result, END)
    between_rows = barriers(result, profiles)
    found = []
    for law in LAWS:
        verdict = claim_on_size(held_rows, varied_rows, law)
        if verdict != "no interval yet":
            parts = [
                f"m = {row['m']} less m = 20: {row['column']} {interval_of(row)}"
                for _, row in held_rows.query("law == @law").iterrows()
            ]
            trend = varied_rows.query("law == @law and column == 'log_lambda_1'")
            slope = interval_of(trend.iloc[0], "slope")
            found.append(
                Claim(
                    "section 6",
                    f"{law}: η and m act as η/m alone, and a larger one ends flatter",
                    verdict,
                    "",
                    "at one loss: " + "; ".join(parts) + f"; slope of log λ₁ on "
                    f"log η/m {slope}",
                )
            )
        rows = between_rows.query("law == @law and curve == 'bezier' and n > 1")
        for _, row in rows.iterrows():
            found.append(
                Claim(
                    "section 6",
                    f"{law}: no high barrier parts the minima",
                    row["verdict"],
                    f"climb on the trained curve {row['climb']:.2g}, less what the "
                    f"noise holds the loss up by, {row['lift']:.2g}: between "
                    f"{row['low']:.2g} and {row['high']:.2g}, n = {row['n']}",
                )
            )
    return found


def interval_of(row, name="difference"):
    """Return a number with its interval, as text."""
    return f"{shown(row[name], row['low'], row['high'], digits=2)}, n = {row['n']}"


def print_tables(result, profiles):
    ends, form = result.ends(), "{:.4f}".format
    columns = ["loss", "test_score", "lambda_1", "sharpness", "adaptive_sharpness"]
    order = pd.MultiIndex.from_product(
        [["start", "noise", "quench", END], result.methods]
    )
    means = ends.groupby(["phase", "method"])[[*columns, "distance"]].mean()
    print(f"\nMeans over the seeds {result.seeds}.")
    print(means.reindex(order).to_string(float_format=form))
    lost = result.units[result.units["quench_loss"] != "reached"]
    if len(lost):
        print(f"\nNot at a training loss of {result.protocol['quench_loss']:g}:")
        columns = ["method", "seed", "status", "phase", "error", "quench_loss"]
        print(lost[columns].to_string(index=False))
    tables = {"ends": means.reset_index()}
    for phase in ("quench", END):
        tables[f"held, {phase}"] = held(result, phase)
        tables[f"varied, {phase}"] = varied(result, phase)
    tables["landscape"] = barriers(result, profiles)
    for name, table in list(tables.items())[1:]:
        print(f"\n{name}:\n{table.to_string(index=False, float_format=form)}")
    claims = {
        law: claim_on_size(tables[f"held, {END}"], tables[f"varied, {END}"], law)
        for law in LAWS
        if label_of(law) in result.methods
    }
    print(f"\nThe claim on the size of the noise: {claims}")
    stored = {name: table.to_dict("list") for name, table in tables.items()}
    return {"seeds": result.seeds, "claims": claims} | stored


# %%
# The picture
# -----------

COLORS = {"gd": "black", "gld_dynamic": "#56b4e9", "sgd": "#d55e00"}
COLORS |= {"gld_full": "#cc78bc"}
MARKERS = {10: "v", 20: "o", 40: "^"}
SHADES = dict(zip(VARIED, ("#f4a582", "#d55e00", "#7f2704"), strict=True))


def draw(result, profiles):
    """Return the figure: runs, where they end over η/m, and what lies between."""
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, axes = plt.subplots(2, 2, figsize=(12, 8.6), layout="constrained")
        draw_runs(axes[0, 0], result)
        draw_ends(axes[0, 1], result, "lambda_1", r"$\lambda_1$ at one training loss")
        draw_ends(axes[1, 0], result, "test_score", "test accuracy at that loss")
        draw_profiles(axes[1, 1], profiles)
        n, first = len(result.seeds), result.methods[0]
        own = result.table.query("phase == 'noise'").set_index("method")
        time = own.loc[first, "iteration"].max() * runs(True)[first][1]
        figure.suptitle(
            f"LeNet, noisy Fashion-MNIST, {n} seed{'s' * (n > 1)}; "
            f"η · iterations = {time:g}",
            fontsize="medium",
        )
        sns.despine(figure)
    return figure


def draw_runs(ax, result):
    rows = result.table.query("phase == 'noise'")
    cells = [("sgd", lr, m) for m, lr in HELD.items()]
    cells += [("sgd", lr, M) for lr in VARIED if lr != LR] + [("gd", LR, M)]
    for law, lr, m in cells:
        part = rows[rows["method"] == label_of(law, lr, m)]
        mean = np.exp(np.log(part["lambda_1"]).groupby(part["iteration"]).mean())
        held_ratio = (m, lr) in HELD.items()
        color = COLORS[law] if law == "gd" else SHADES[lr]
        name = "gd" if law == "gd" else f"η = {lr:g}, m = {m}"
        ax.plot(
            mean.index * lr,
            mean,
            color=color,
            marker=None if law == "gd" else MARKERS[m],
            ls="-" if held_ratio else "--",
            ms=5,
            label=name,
        )
    ax.set(xlabel="η · iterations, with noise", ylabel=r"$\lambda_1$", yscale="log")
    ax.set_title("sgd; full lines: η/m held", loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")


def draw_ends(ax, result, column, name):
    values = values_of(result, column, END)
    gd = values[label_of("gd")].dropna()
    if len(gd):
        ax.axhline(gd.mean(), color="black", lw=1, ls=":", label=f"gd, η = {LR:g}")
    for i, law in enumerate(LAWS):
        shift = 1.06 ** (2 * i - 1)  # beside each other
        x = np.array(VARIED) / M * shift
        means = values[[label_of(law, lr) for lr in VARIED]].mean()
        ax.plot(x, means, color=COLORS[law], lw=1.4, label=law)
        for lr, m in {*((lr, m) for m, lr in HELD.items()), *((r, M) for r in VARIED)}:
            own = values[label_of(law, lr, m)].dropna()
            x = np.full(len(own), lr / m * shift * (M / m) ** 0.04)
            ax.plot(x, own, MARKERS[m], color=COLORS[law], ms=6, alpha=0.7)
    for m, marker in MARKERS.items():
        ax.plot([], [], marker, color="0.4", label=f"m = {m}")
    ticks = [lr / M for lr in VARIED]
    low = values.min().min()
    ax.set(xscale="log", xlabel="η/m", ylabel=name)
    if low > 0 and column == "lambda_1":
        ax.set_yscale("log")
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    ax.legend(frameon=False, fontsize="small")


def draw_profiles(ax, profiles):
    for law in ("gd", "gld_dynamic", *LAWS):
        for curve, style in (("segment", "--"), ("bezier", "-")):
            own = [laws[law][curve] for laws in profiles.values() if law in laws]
            if own:
                mean = np.mean([profile["loss"] for profile in own], axis=0)
                name = law if curve == "bezier" else None
                ax.plot(own[0]["t"], mean, style, color=COLORS[law], label=name)
    ax.set(xlabel=r"t, from $\theta_{GD}$ to the quenched end", ylabel="training loss")
    ax.set_yscale("log")
    ax.set_title("full: trained curve; dashed: segment", loc="left", fontsize="medium")
    if profiles:
        ax.legend(frameon=False, fontsize="small")


# %%
def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the whole protocol")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("learning-rate-and-batch-size-output"),
        metavar="DIR",
    )
    parser.add_argument("--plot-only", action="store_true", help="what is there")
    arguments = parser.parse_args(argv)
    if arguments.seeds is None:
        arguments.seeds = SEEDS if arguments.full else SEEDS[:2]
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.plot_only:
        experiment(arguments)
    result, profiles = collect(arguments)
    n_missing = len(runs(arguments.full)) * len(arguments.seeds) - len(result.units)
    print(f"{len(result.units)} units, {n_missing} missing.")
    path = arguments.output / "verdicts.json"
    _record.store(path, print_tables, result, profiles)
    draw(result, profiles).savefig(path.with_name("picture.png"), dpi=120)
    print(path.with_name("picture.png"))


if __name__ == "__main__":
    main()
