"""What the comparisons of dynamics share: units in files, verdicts and pictures."""

from collections import defaultdict
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from _claims import MOVE, STAY, Claim, shown

from flatmin import expected_sharpness
from flatmin.comparison import ComparisonResult, merge_comparisons
from flatmin.curvature import covariance_trace
from flatmin.measures import (
    adaptive_expected_sharpness,
    max_eigenvalue,
    trace_hessian_covariance,
    trace_sharpness,
)
from flatmin.plotting import ComparisonDisplay

# What is claimed to differ from GD: in which direction, and by how much at least.
CLAIMS = {"test_score": (1, 0.005), "end_sharpness": (-1, 0.2)}
# What is judged, with names for people.
TITLES = {"test_score": "test accuracy", "end_sharpness": "sharpness"}
PHASES = ("noise", "quench", "quench_loss")
AFTER = {"quench": "quenched", "quench_loss": "at one loss"}


# %%
# What is measured
# ----------------


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


def measures(n_draws, max_matvecs):
    """Return what is measured along a run, and where its phases end.

    Ten times as many draws are taken at the ends, where the sharpness is judged.
    """
    along = {
        "sharpness": Measure(expected_sharpness, n_draws=n_draws),
        "adaptive_sharpness": Measure(adaptive_expected_sharpness, n_draws=n_draws),
        "covariance_trace": covariance_trace,
    }
    n_draws *= 10
    ends = {
        "end_sharpness": Measure(expected_sharpness, n_draws=n_draws),
        "end_adaptive_sharpness": Measure(adaptive_expected_sharpness, n_draws=n_draws),
        "max_eigenvalue": Measure(max_eigenvalue),
        "trace_sharpness": Measure(trace_sharpness, max_matvecs=max_matvecs),
        "trace_hessian_covariance": Measure(
            trace_hessian_covariance, max_matvecs=max_matvecs
        ),
    }
    return {"metrics": along, "end_metrics": ends}


# %%
# All units, each in a file of its own
# ------------------------------------


def path_of(folder, method, seed):
    return folder / f"{method.replace(' ', '_')}_seed{seed}.json"


def run_missing(folder, methods, seeds, compare):
    """Run ``compare(methods, seeds, on_unit)`` for the units that have no file."""
    # Seeds that miss the same methods run together: in a first call, all of them.
    missing = defaultdict(list)
    for seed in seeds:
        left = [name for name in methods if not path_of(folder, name, seed).exists()]
        missing[tuple(left)].append(seed)

    def write(unit):
        # A collapse is an outcome. What else a machine may do to a unit is tried again.
        if unit.failures["error"].eq("DivergenceError").all():
            unit.to_json(path_of(folder, unit.methods[0], unit.seeds[0]))
        else:
            print(unit.failures.to_string(index=False))

    for names, left in missing.items():
        if names:
            compare({name: methods[name] for name in names}, left, write)


def collect(folder, methods, seeds, batch_size):
    """Return what is there of the methods and seeds that were asked for."""
    paths = [path_of(folder, method, seed) for method in methods for seed in seeds]
    found = [ComparisonResult.from_json(path) for path in paths if path.exists()]
    if not found:
        raise SystemExit(f"There are no results in {folder}: run without --plot-only.")
    return add_matched_trace(merge_comparisons(found), batch_size)


def add_matched_trace(result, batch_size):
    """Add Tr(C) m / Tr(Σ), which is 1 where the noise is of the size of SGD's."""
    table = result.table
    ratio = batch_size * table["noise_norm"] ** 2 / table["covariance_trace"]
    ratio = ratio.where(table["phase"] == "noise")
    return replace(result, table=table.assign(trace_ratio=ratio))


# %%
# The verdicts
# ------------


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
    ("test_score", True): "generalises better than GD",
    ("test_score", False): "generalises as GD does",
    ("end_sharpness", True): "finds a flatter minimum than GD",
    ("end_sharpness", False): "stays in a minimum as sharp as GD's",
}


def claims(result, where):
    """Return what the claim on each law came to, with the noise and after it."""
    table = judge(result).query("verdict != ''")
    found = []
    for (column, law), rows in table.groupby(["column", "method"], sort=False):
        texts = {row["phase"]: difference(row) for _, row in rows.iterrows()}
        verdicts = dict(zip(rows["phase"], rows["verdict"], strict=True))
        if "noise" in texts:
            moves = law.split()[0] in MOVE
            found.append(
                Claim(
                    where,
                    f"{law} {SAYS[column, moves]}",
                    verdicts["noise"],
                    texts["noise"],
                    "; ".join(
                        f"{title}: **{verdicts[phase]}**, {texts[phase]}"
                        for phase, title in AFTER.items()
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
    values = [scale * row[name] for name in ("difference", "low", "high")]
    if row["n"] < 2:
        return f"{values[0]:.2g} {unit}, n = {row['n']}"
    return f"{shown(*values, digits=2)} {unit}, n = {row['n']}"


# %%
# The table and the picture
# -------------------------


def print_tables(result):
    ends = result.ends()
    columns = ["train_score", "test_score", "loss", "end_sharpness"]
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
            "test_score": (axes[0, 0], "test accuracy"),
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
            draw_differences(axes[:, 2], result, methods)
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


def draw_differences(axes, result, methods):
    """Draw the paired differences from GD, and how large one must be."""
    display = ComparisonDisplay.from_results(
        result, baseline="gd", columns=list(CLAIMS), methods=methods
    )
    display.plot(axes, kind="differences")
    for ax, (column, (direction, least)) in zip(axes, CLAIMS.items(), strict=True):
        if column == "end_sharpness":
            rows = judge(result).query("column == @column and phase == 'quench'")
            least *= rows["mean of gd"].mean()
        ax.axvline(direction * least, color="0.5", lw=1, ls=":", zorder=0)
        ax.set_xlabel(f"{TITLES[column]} less that of gd")
