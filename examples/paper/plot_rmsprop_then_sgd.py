"""
From RMSProp's minimum on with SGD
==================================

Figure 7 of arXiv 1803.00195: RMSProp trains a network until the training loss is nearly
zero, and SGD goes on from there. The claim: the diagonal preconditioner bends the
covariance of the noise away from the Hessian (equation 17), so RMSProp stays in a sharp
minimum; SGD leaves it for a flatter one, the sharpness drops and the test accuracy
rises.

*Protocol.* 1000 Fashion-MNIST images with right and 200 with random labels, pixels in
[0, 1], a LeNet of 11,330 parameters with PyTorch's initialisation; 12,000 iterations of
RMSProp with the paper's settings (rate 1e-3, α = 0.99, ε = 1e-8, m = 20), then 6000 of
SGD with m = 20. Beside it Adam at the same rate with PyTorch's settings, and each of
the two optimizers *continued* for 6000 iterations with its state, which is the control.
The paper does not say for how long SGD runs. A seed draws the images, the wrong labels,
the initialisation and the minibatches, and all runs of a seed share them: differences
are paired. Seeds 0 to 5; a pilot used seed 100.

*Rates.* The paper's are from a grid (appendix F). RMSProp has the paper's 1e-3. SGD has
the paper's 0.1, and 0.05 and 0.03: in the pilot SGD at 0.1 fell within 500 iterations
into a network that gives one answer to all images, at the other two it did not. Each
unit stores its accuracy on 5000 unused training images at its end; the rate that is
best there, in the mean over the seeds and with the noise, is called *tuned*. The test
set chooses nothing. The claim is judged at the paper's rate and at the tuned one; the
third is shown.

*Confounders.* Noise holds the loss up, and the curvature of the cross-entropy vanishes
with the loss. So every end point is also *quenched*, by 500 iterations of gradient
descent at 0.05, and, from the same point, led to one training loss for all, 0.001, in
at most 2000 iterations; a run that ends below it or does not get there has no number
there. For all ends the sharpness over the loss is shown too.

*What is compared.* Test accuracy, expected sharpness (s = 0.01) and adaptive expected
sharpness at the ends; λ₁ and training accuracy are shown. Each run of SGD less the same
optimizer continued, with the noise, after the quench and at equal loss; with the noise
also less the point where SGD began.

*Rule, fixed before the numbers.* *Reproduced*: the paired 95 % interval over the seeds
excludes 0 in the claimed direction, and the effect is at least half a point of test
accuracy, or a fifth of the sharpness that it is compared with. *Partly*: one of the
two, in that direction. Else *not*. A run that ends, quenched, with a training accuracy
below one half has *collapsed*. It is an outcome: it stays in the differences and is
counted. But a network of one answer is flat, so that sharpness is not judged where a
run of SGD has collapsed.

At the end of the first phase stands how PΣP lies to H beside Σ: projection residual,
overlap, and Tr(H PΣP) over Tr(H)Tr(PΣP)/D, which is 1 for noise without direction.

Without ``--full`` a short version shows in less than a minute that all works; it says
nothing about the claim. Every unit, a run with a seed, is a file of its own, and a
second call goes on where the first stopped, seed by seed.
"""

# %%
import argparse
import copy
import json
from functools import partial
from pathlib import Path

import _record
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from _claims import Claim, shown
from _comparison import AFTER, Measure
from matplotlib.ticker import MaxNLocator
from skorch.callbacks import Callback
from torch.func import functional_call

from flatmin import NoisyDiffusionClassifier, expected_sharpness
from flatmin.comparison import compare_dynamics, paired_difference
from flatmin.curvature import adaptive_preconditioner
from flatmin.datasets import fetch_fashion_mnist, load_noisy_fashion_mnist
from flatmin.measures import (
    adaptive_expected_sharpness,
    alignment,
    max_eigenvalue,
)
from flatmin.modules import LeNet

OPTIMIZERS = {
    "rmsprop": {"alpha": 0.99, "eps": 1e-8},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8},
}
START_LR, BATCH_SIZE, QUENCH_LR, QUENCH_LOSS = 1e-3, 20, 0.05, 0.001
SGD_LRS = {"sgd at 0.1": 0.1, "sgd at 0.05": 0.05, "sgd at 0.03": 0.03}
RUNS = ("continued", *SGD_LRS)
SEEDS = tuple(range(6))
# The noise of the first phase, its minibatches and the initialisation have seeds of
# their own: the second phase would else meet the same minibatches again.
START_SEED = 1000

FULL = {"clean": 1000, "corrupt": 200, "test": 10_000, "unused": 5000, "k": 20}
FULL |= {"start": 12_000, "more": 6000, "every": 1000, "draws": 30, "end_draws": 100}
FULL |= {"quench": 500, "quench_loss_iter": 2000}
SHORT = {"clean": 50, "corrupt": 10, "test": 200, "unused": 100, "k": 3}
SHORT |= {"start": 20, "more": 10, "every": 10, "draws": 2, "end_draws": 2}
SHORT |= {"quench": 4, "quench_loss_iter": 4}


# %%
# Data and measures
# -----------------


def load(seed, sizes):
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    test = slice(sizes["test"])
    return data.data, data.target, data.data_test[test], data.target_test[test]


def load_unused(seed, n, sizes):
    """Return n training images that the seed does not train on, and their labels."""
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    X, y = fetch_fashion_mnist(return_X_y=True)
    left = np.setdiff1d(np.arange(len(X)), data.indices)
    chosen = np.random.default_rng(seed).choice(left, n, replace=False)
    return X[chosen].reshape(-1, 1, 28, 28), y[chosen]


class UnusedAccuracy:
    """The share of unused training images whose largest output is their class's."""

    def __init__(self, seed, sizes):
        X, y = load_unused(seed, sizes["unused"], sizes)
        self.X, self.y = torch.as_tensor(X), torch.as_tensor(y)
        self.network = LeNet()

    def __call__(self, risk, theta):
        params = risk.layout.views(theta)
        named = dict(zip(risk.layout.names, params, strict=True))
        with torch.no_grad():
            outputs = functional_call(self.network, named, self.X)
        return (outputs.argmax(1) == self.y).double().mean()

    def __repr__(self):
        return f"UnusedAccuracy(n={len(self.y)})"


def run_metrics(sizes):
    draws = sizes["draws"]
    return {
        "sharpness": Measure(expected_sharpness, n_draws=draws),
        "adaptive_sharpness": Measure(adaptive_expected_sharpness, n_draws=draws),
        "max_eigenvalue": max_eigenvalue,
    }


# %%
# The first phase
# ---------------


def run_start(optimizer, seed, sizes):
    """Return what is stored of the first phase, and its θ and optimizer's state."""
    X, y, X_test, y_test = load(seed, sizes)
    model = NoisyDiffusionClassifier(
        LeNet,
        method="sgd",
        optimizer=optimizer,
        optimizer_params=OPTIMIZERS[optimizer],
        lr=START_LR,
        batch_size=BATCH_SIZE,
        max_iter=sizes["start"],
        record_every=sizes["every"],
        metrics=run_metrics(sizes),
        random_state=START_SEED + seed,
    ).fit(X, y, X_val=X_test, y_val=y_test)
    P = adaptive_preconditioner(model.net_.optimizer_, model.module_)
    risk, theta = model.risk_, model.risk_.params()
    tables = {
        "Σ": alignment(risk, theta, sizes["k"]),
        "PΣP": alignment(risk, theta, sizes["k"], preconditioner=P),
    }
    # As in the tables of compare_dynamics: this fit was shown the test data.
    names = {"valid_loss": "test_loss", "valid_score": "test_score"}
    unit = {
        "optimizer": optimizer,
        "seed": seed,
        "sizes": sizes,
        "rows": model.history_.rename(columns=names).to_dict("list"),
        "preconditioner": dict(
            zip(("min", "median", "max"), quantiles(P), strict=True)
        ),
        "alignment": {
            name: found.to_frame()["value"].to_dict() for name, found in tables.items()
        },
        "undefined": {name: found.undefined for name, found in tables.items()},
    }
    return unit, {"theta": theta, "state": model.net_.optimizer_.state_dict()}


def quantiles(P):
    return torch.quantile(P.double(), torch.tensor([0, 0.5, 1.0]).double()).tolist()


class Resume(Callback):
    """Gives an optimizer the state in which the first phase left it."""

    def __init__(self, state):
        self.state = state

    def on_train_begin(self, net, **kwargs):
        # A copy: an optimizer counts its steps up in place.
        net.optimizer_.load_state_dict(copy.deepcopy(self.state))

    def __repr__(self):
        return "Resume()"


# %%
# The second
# ----------


def run_unit(optimizer, name, seed, start, sizes):
    """Return what is stored of one run from where the first phase ended."""
    if name == "continued":
        settings = {"optimizer": optimizer, "lr": START_LR}
        settings["optimizer_params"] = OPTIMIZERS[optimizer]
        settings["callbacks"] = [Resume(start["state"])]
    else:
        settings = {"optimizer": "sgd", "lr": SGD_LRS[name]}
    draws = sizes["end_draws"]
    result = compare_dynamics(
        {name: {"method": "sgd", **settings}},
        partial(load, sizes=sizes),
        estimator=NoisyDiffusionClassifier(
            LeNet,
            max_iter=sizes["more"],
            batch_size=BATCH_SIZE,
            params_init=start["theta"].numpy(),
            record_every=sizes["every"],
        ),
        n_seeds=[seed],
        metrics=run_metrics(sizes),
        end_metrics={
            "end_sharpness": Measure(expected_sharpness, n_draws=draws),
            "end_adaptive_sharpness": Measure(
                adaptive_expected_sharpness, n_draws=draws
            ),
            "unused_accuracy": UnusedAccuracy(seed, sizes),
        },
        quench=sizes["quench"],
        quench_lr=QUENCH_LR,
        quench_loss=QUENCH_LOSS,
        quench_loss_iter=sizes["quench_loss_iter"],
    )
    return {
        "optimizer": optimizer,
        "run": name,
        "seed": seed,
        "sizes": sizes,
        "rows": result.table.to_dict("list"),
        "outcome": result.units.to_dict("records")[0],
    }


# %%
# All units, each in a file of its own
# ------------------------------------


def path_of(folder, optimizer, name, seed):
    return folder / f"{optimizer}-{name.replace(' ', '-')}-seed{seed}.json"


def run_missing(arguments, sizes):
    for seed in arguments.seeds:
        for optimizer in arguments.optimizers:
            paths = {
                name: path_of(arguments.output, optimizer, name, seed) for name in RUNS
            }
            missing = [name for name in RUNS if not paths[name].exists()]
            if missing:
                start = start_of(arguments, optimizer, seed, sizes)
            for name in missing:
                _record.store(
                    paths[name], run_unit, optimizer, name, seed, start, sizes
                )
                print(paths[name], flush=True)


def start_of(arguments, optimizer, seed, sizes):
    """Return where the first phase ended, from its file or by running it."""
    path = path_of(arguments.output, optimizer, "start", seed)
    tensors = arguments.output / "states" / f"{optimizer}-seed{seed}.pt"
    if not (path.exists() and tensors.exists()):
        ends = []

        def run():
            unit, end = run_start(optimizer, seed, sizes)
            ends.append(end)
            return unit

        _record.store(path, run)
        tensors.parent.mkdir(exist_ok=True)
        part = tensors.with_suffix(".part")
        torch.save(ends[0], part)
        part.replace(tensors)
        print(path, flush=True)
    return torch.load(tensors, weights_only=True)


def read(arguments, optimizer, name):
    """Return the stored units of a run, by seed."""
    paths = {s: path_of(arguments.output, optimizer, name, s) for s in arguments.seeds}
    return {s: json.loads(p.read_text()) for s, p in paths.items() if p.exists()}


def collect(arguments):
    """Return a row for each end of each unit."""
    rows = []
    for optimizer in OPTIMIZERS:
        for name in RUNS:
            for seed, unit in read(arguments, optimizer, name).items():
                rows += ends(unit, optimizer, name, seed)
    return pd.DataFrame(rows)


def ends(unit, optimizer, name, seed):
    """Return the ends of a unit: where it began, with the noise, and quenched."""
    table = pd.DataFrame(unit["rows"])
    of = dict(list(table.groupby("phase", sort=False)))
    found = {"start": of["noise"].iloc[0]}
    if unit["outcome"]["status"] == "done" or "quench" in of:
        found["noise"] = of["noise"].iloc[-1]
    if "quench" in of:
        found["quench"] = of["quench"].iloc[-1]
    if unit["outcome"]["quench_loss"] == "reached":
        found["quench_loss"] = of["quench_loss"].iloc[-1]
    collapsed = found.get("quench", found["start"])["train_score"] < 0.5
    key = {"optimizer": optimizer, "run": name, "seed": seed}
    key |= {"collapsed": bool(collapsed), "failed": unit["outcome"]["error"]}
    key |= {"to the loss": unit["outcome"]["quench_loss"]}
    columns = ["iteration", "loss", "train_score", "test_score", "unused_accuracy"]
    columns += ["max_eigenvalue", "end_sharpness", "end_adaptive_sharpness"]
    rows = [
        key | {"phase": phase} | row[columns].to_dict() for phase, row in found.items()
    ]
    for row in rows:
        row["sharpness / loss"] = row["end_sharpness"] / row["loss"]
    return rows


# %%
# The verdict
# -----------

# In which direction the claim goes, and by how much at least.
CLAIMS = {
    "test_score": (1, 0.005),
    "end_sharpness": (-1, 0.2),
    "end_adaptive_sharpness": (-1, 0.2),
}
TITLES = {
    "test_score": "test accuracy",
    "end_sharpness": "sharpness",
    "end_adaptive_sharpness": "adaptive sharpness",
}


def judge(units):
    """Return the differences and verdicts, one row for a run, an end and a column."""
    rows = []
    for (optimizer, name), own in units.groupby(["optimizer", "run"], sort=False):
        control = units.query("optimizer == @optimizer and run == 'continued'")
        for column, (direction, least) in CLAIMS.items():
            pairs = [("start", "noise", own[own["phase"] == "start"])]
            pairs += [
                ("continued", phase, control[control["phase"] == phase])
                for phase in ("noise", "quench", "quench_loss")
            ]
            for against, phase, others in pairs:
                if name == against:
                    continue
                here = own[own["phase"] == phase].set_index("seed")
                pair = pd.concat(
                    [here[column], others.set_index("seed")[column]], axis=1
                )
                pair = pair.dropna()
                if pair.empty:
                    continue
                found = paired_difference(pair.iloc[:, 0], pair.iloc[:, 1])
                baseline = pair.iloc[:, 1].mean()
                scale = 1 if column == "test_score" else baseline
                n_collapsed = int(here["collapsed"].sum())
                rows.append(
                    {
                        "optimizer": optimizer,
                        "run": name,
                        "against": against,
                        "phase": phase,
                        "column": column,
                        "mean": pair.iloc[:, 0].mean(),
                        "baseline": baseline,
                        "difference": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "p": found.p_value,
                        "n": found.n,
                        "n_collapsed": n_collapsed,
                        "verdict": verdict(
                            found, direction, least * scale, column, n_collapsed, name
                        ),
                    }
                )
    return pd.DataFrame(rows)


def verdict(found, direction, least, column, n_collapsed, name):
    """Judge a difference by the rule above."""
    if name == "continued":
        return ""
    if n_collapsed and column != "test_score":
        return "collapsed"
    effect = direction * found.mean
    certain = min(direction * found.low, direction * found.high) > 0
    if effect <= 0 or not (certain or effect >= least):
        return "not"
    return "reproduced" if certain and effect >= least else "partly"


def tuned_rate(units, optimizer):
    """Return the run of SGD that is best on unused training images."""
    part = units.query("optimizer == @optimizer and phase == 'noise'")
    means = part.groupby("run")["unused_accuracy"].mean().reindex(SGD_LRS)
    return means.idxmax() if means.notna().any() else "-"


SAYS = {
    "test_score": "SGD generalises better",
    "end_sharpness": "SGD goes on to a flatter minimum",
}


def claims(units):
    """Return what figure 7 came to at the paper's rate and at the tuned one."""
    table = judge(units).query("against == 'continued' and n > 1")
    found = []
    for optimizer in units["optimizer"].unique():
        rates = {"sgd at 0.1": "the paper's rate"}
        rates.setdefault(tuned_rate(units, optimizer), "the tuned rate")
        for name, rate in rates.items():
            own = table.query("optimizer == @optimizer and run == @name")
            for column, says in SAYS.items():
                rows = own[own["column"] == column].set_index("phase")
                if "noise" in rows.index:
                    found.append(
                        Claim(
                            "figure 7",
                            f"{says} than {optimizer} continued ({name}, {rate})",
                            rows.loc["noise", "verdict"],
                            difference(rows.loc["noise"]),
                            "; ".join(
                                f"{title}: **{rows.loc[phase, 'verdict']}**, "
                                + difference(rows.loc[phase])
                                for phase, title in AFTER.items()
                                if phase in rows.index
                            ),
                        )
                    )
    return found


def difference(row):
    """Return a difference from the control as text, with the collapsed runs."""
    scale = 1 if row["column"] == "test_score" else row["baseline"]
    values = (100 * row[name] / scale for name in ("difference", "low", "high"))
    unit = "points" if row["column"] == "test_score" else "%"
    return (
        f"{shown(*values, digits=2)} {unit}, n = {row['n']}, "
        f"{row['n_collapsed']} collapsed"
    )


def print_tables(arguments, units, table):
    print(f"Means over the seeds {sorted(units['seed'].unique().tolist())}.")
    keys = ["optimizer", "run", "phase"]
    columns = ["loss", "train_score", "test_score", "unused_accuracy"]
    columns += ["max_eigenvalue", "end_sharpness", "end_adaptive_sharpness"]
    columns += ["sharpness / loss"]
    means = units.groupby(keys, sort=False)[columns].mean()
    means["n"] = units.groupby(keys, sort=False).size()
    means["n_collapsed"] = units.groupby(keys, sort=False)["collapsed"].sum()
    print(means.to_string(float_format="{:.4g}".format))
    outcomes = units.drop_duplicates(["optimizer", "run", "seed"])
    counts = outcomes.groupby(["optimizer", "run"], sort=False)["to the loss"]
    print(f"\nTo the training loss {QUENCH_LOSS:g}:")
    print(counts.value_counts().to_string())
    for optimizer in OPTIMIZERS:
        print(f"\nTuned after {optimizer}: {tuned_rate(units, optimizer)}.")
    print("\nPaired differences with 95 % intervals:")
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print("\nThe noise beside H at the end of the first phase, means over seeds:")
    print(alignments(arguments).to_string(float_format="{:.4g}".format))


def alignments(arguments):
    """Return the projection residual, the overlap, the gain and a, by optimizer."""
    rows = {}
    names = ["projection residual", "projection residual, random", "overlap"]
    names += ["anisotropy gain", "trace alignment", "a"]
    for optimizer in OPTIMIZERS:
        starts = read(arguments, optimizer, "start").values()
        for noise in ("Σ", "PΣP"):
            found = pd.DataFrame([unit["alignment"][noise] for unit in starts])
            if len(found):
                rows[optimizer, noise] = found[names].astype(float).mean()
    return pd.DataFrame(rows).T


# %%
# The picture
# -----------

COLORS = {"start": "0.45", "continued": "black"}
COLORS |= {"sgd at 0.1": "#d55e00", "sgd at 0.05": "#0173b2", "sgd at 0.03": "#56b4e9"}
CURVES = {
    "test_score": "test accuracy",
    "sharpness": "expected sharpness, s = 0.01",
    "train_score": "training accuracy",
    "max_eigenvalue": r"$\lambda_1$",
}
MARKS = {"noise": ("o", "white", 0.22), "quench": ("o", None, 0.0)}
MARKS |= {"quench_loss": ("D", None, -0.22)}


def draw(arguments, table, optimizer):
    """Return the figure: the runs, and how SGD differs from the optimizer's own end."""
    starts = read(arguments, optimizer, "start")
    runs = {name: read(arguments, optimizer, name) for name in RUNS}
    runs = {name: found for name, found in runs.items() if found}
    n_seeds = f"{len(starts)} seed{'s' if len(starts) > 1 else ''}"
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, axes = plt.subplots(
            2, 3, figsize=(13, 7), width_ratios=[4, 4, 3], layout="constrained"
        )
        for ax, column in zip(axes[:, :2].T.flat, CURVES, strict=True):
            draw_curves(ax, starts, runs, column)
            ax.set_ylabel(CURVES[column])
        for ax in axes[1, :2]:
            ax.set_xlabel("iterations")
        part = table.query("optimizer == @optimizer and against == 'continued'")
        draw_differences(axes[0, 2], part, "test_score")
        draw_differences(axes[1, 2], part, "end_sharpness")
        axes[0, 2].set_title(
            "○ with noise  ● quenched  ◆ equal loss", loc="left", fontsize="small"
        )
        handles = [
            plt.Line2D([], [], color=COLORS[name], lw=2, label=label)
            for name, label in labels(optimizer, runs).items()
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, frameon=False
        )
        figure.suptitle(
            f"{optimizer}, then SGD: mean over {n_seeds}, bands from least to most",
            fontsize="medium",
        )
        sns.despine(figure)
    return figure


def labels(optimizer, runs):
    found = {"start": f"{optimizer}, first phase"}
    for name in runs:
        found[name] = f"{optimizer} continued" if name == "continued" else name
    return found


def draw_curves(ax, starts, runs, column):
    """Draw means over seeds with bands from the least to the most."""
    switch = next(iter(starts.values()))["sizes"]["start"] if starts else 0
    first = [
        pd.DataFrame(u["rows"]).set_index("iteration")[column] for u in starts.values()
    ]
    # At the initialisation all is far from where it is later.
    first = [line[line.index > 0] for line in first]
    log = column in ("sharpness", "max_eigenvalue")
    if log:
        ax.set_yscale("log", nonpositive="mask")
    draw_band(ax, first, COLORS["start"], log=log)
    last = {}
    for name, units in runs.items():
        lines = []
        for unit in units.values():
            rows = pd.DataFrame(unit["rows"]).query("phase in ('noise', 'quench')")
            # The quench begins on the last row of the noise.
            rows = rows.drop_duplicates("iteration")
            last["noise"], last["quench"] = (
                switch + unit["sizes"]["more"],
                switch + rows["iteration"].max(),
            )
            lines.append(rows.set_index(rows["iteration"] + switch)[column])
        draw_band(ax, lines, COLORS[name], log=log)
    ax.axvline(switch, color="0.4", lw=1, ls="--", zorder=0)
    if last:
        ax.axvspan(last["noise"], last["quench"], color="0.9", lw=0, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def draw_band(ax, lines, color, *, log):
    if not lines:
        return
    values = pd.concat(lines, axis=1).astype(float)
    mean = values.mean(axis=1)
    if log:
        mean = np.exp(np.log(values.where(values > 0)).mean(axis=1))
    ax.plot(mean.index, mean, color=color, lw=1.8)
    band = values.min(axis=1), values.max(axis=1)
    ax.fill_between(mean.index, *band, color=color, alpha=0.15, lw=0)


def draw_differences(ax, table, column):
    part = table[table["column"] == column]
    names = [name for name in SGD_LRS if name in set(part["run"])]
    for i, name in enumerate(names):
        for _, row in part[part["run"] == name].iterrows():
            marker, fill, shift = MARKS[row["phase"]]
            y, color = len(names) - i + shift, COLORS[name]
            ax.plot([row["low"], row["high"]], [y, y], color=color, lw=2)
            ax.plot(row["difference"], y, marker, color=color, mfc=fill or color, ms=6)
    ax.axvline(0, color="0.5", lw=1, zorder=0)
    direction, least = CLAIMS[column]
    if column != "test_score":
        least *= part.loc[part["phase"] == "quench", "baseline"].mean()
    ax.axvline(direction * least, color="0.5", lw=1, ls=":", zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set(yticks=range(len(names), 0, -1), yticklabels=names)
    ax.set_ylim(0.5, len(names) + 0.5)
    ax.set_xlabel(f"{TITLES[column]} less that of the control", fontsize="small")


# %%
def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the whole protocol")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument(
        "--output", type=Path, default=Path("rmsprop-then-sgd-output"), metavar="DIR"
    )
    parser.add_argument("--plot-only", action="store_true", help="what is there")
    arguments = parser.parse_args(argv)
    if arguments.seeds is None:
        arguments.seeds = SEEDS if arguments.full else SEEDS[:1]
    if arguments.optimizers is None:
        arguments.optimizers = [*OPTIMIZERS] if arguments.full else ["rmsprop"]
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    if not arguments.plot_only:
        arguments.output.mkdir(parents=True, exist_ok=True)
        run_missing(arguments, FULL if arguments.full else SHORT)
    units = collect(arguments)
    if units.empty:
        raise SystemExit(f"No unit is in {arguments.output}: run without --plot-only.")
    table = judge(units)
    print_tables(arguments, units, table)
    _record.store(arguments.output / "verdicts.json", lambda: table.to_dict("list"))
    for optimizer in OPTIMIZERS:
        if optimizer in set(units["optimizer"]):
            path = arguments.output / f"{optimizer}.png"
            draw(arguments, table, optimizer).savefig(path, dpi=120)
            print(path)


if __name__ == "__main__":
    main()
