"""
The paper's two groups at the edge of stability
===============================================

Arxiv 1803.00195 says which noise leads gradient descent to flatter minima: that of SGD
and noise with its leading directions (GLD leading, GLD Hessian), but neither isotropic
noise (GLD const, GLD dynamic) nor noise with SGD's variances alone (GLD diagonal). On
cross-entropy the claim is hard to judge: noise holds the loss up, and the curvature
falls with the loss.

Under squared error it has a short form. Gradient descent at a rate η raises λ₁, the
largest eigenvalue of the Hessian, until λ₁η/2 hovers at 1: the edge of stability (Cohen
et al. 2021, arXiv 2103.00065). All laws run from the same initialisation, at one rate,
to nearly one training loss, and squared error has no curvature that dies with the loss.
Where does λ₁η/2 end?

*Protocol.* 500 images, one-hot targets, squared error as the mean over the outputs, a
tanh network of two hidden layers of 32 with PyTorch's initialisation times 0.5, in
float64, 12,000 iterations from the initialisation, m = 16 and k = 20. A seed draws the
initialisation and the noise; all laws share it, so that differences are paired. Seeds
10 to 17, which no pilot has used. Two rates, three m, a second data set, and the
cross-entropy, where the loss is not held.

Beside the paper's laws stand controls, and at the first setting what others propose and
laws that take SGD's noise apart. SVAG makes l steps of η/l for each iteration, and the
edge of those steps is at λ₁η/2 = l: beside it stands GD with the same steps.

*What is compared.* The mean of λ₁η/2 over the last third of a run; test accuracy, Tr(H)
and Tr(HC), with C the covariance of the law's own noise, at its end.

*Rule, fixed before the numbers.* A law *moves* if the paired 95 % interval of its late
λ₁η/2 less that of GD lies below 0 and the mean difference is at least a fifth of GD's.
It *stays* if the interval lies within a fifth of GD's on both sides. Else it is
*between*. The claim on a law is *reproduced* if a law that should move moves, or one
that should stay stays; *partly* if it should move and only one of the two conditions
holds; else *not*. Test accuracy is judged alike, with half a point in place of a fifth.
Where the mean training loss of a law differs from GD's by more than a factor of three,
the losses are not equal and the row says so. A run that diverges is an outcome and is
counted.

Without ``--full`` a short version shows in less than a minute that all works; it says
nothing about the claim. Every unit, a law with a seed at a setting, is a file of its
own, and a second call goes on where the first stopped.
"""

# %%
import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import _record
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from _claims import MOVE, STAY, Claim, graded, shown
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call

from flatmin import NoisyDiffusionClassifier, NoisyDiffusionRegressor
from flatmin.comparison import paired_difference
from flatmin.curvature import HessianOperator, hessian_trace
from flatmin.datasets import fetch_fashion_mnist
from flatmin.measures import edge_of_stability
from flatmin.noise import METHODS, make_noise_law

# The laws beside those of which the paper says whether they stay or move.
CONTROLS = (
    *("gld_full", "gld_ggn", "gld_fisher", "gld_first_eigenvector"),
    *("gld_shuffled", "gld_random_subspace"),
)
# Beyond the paper: labels, the laws behind them, and their settings.
VARIANTS = {
    # Does isotropic noise that meets as much curvature as SGD's do what SGD does?
    "gld_dynamic, Tr(HC)": ("gld_dynamic", {"match": "curvature"}),
    "gld_diagonal, Tr(HC)": ("gld_diagonal", {"match": "curvature"}),
    # Which part of SGD's noise does it: along H's leading eigenvectors, or the rest?
    "gld_full, top": ("projected", {"keep": "top"}),
    "gld_full, bulk": ("projected", {"keep": "bulk"}),
    # Does it matter that the noise of minibatches is not Gaussian?
    "svag, l = 4": ("svag", {"n_substeps": 4}),
    "svag, l = 16": ("svag", {"n_substeps": 16}),
    # What its smaller steps do without any noise.
    "gd, η/4": ("gd", None),
    "gd, η/16": ("gd", None),
    "bernoulli": ("bernoulli", None),
    "alpha_stable": ("alpha_stable", None),
    # What others propose.
    "label_noise, Tr(C)": ("label_noise", {"match": "trace"}),
    "anti_pgd": ("anti_pgd", None),
    "sam": ("sam", None),
}
# By how much a law's η is divided and its iterations are multiplied.
SMALLER_STEPS = {"gd, η/4": 4, "gd, η/16": 16}
LAWS = ("gd", *STAY, *MOVE, *CONTROLS, *VARIANTS)
CHEAP = ("gd", *STAY, "sgd", "gld_full", "gld_ggn")
SEEDS = tuple(range(10, 18))
K = 20
# σ of GLD const: at D = 3466 a noise of norm 0.06, that of SGD's at initialisation.
PARAMS = {"gld_const": {"sigma": 1e-3}}

FULL = {"n_iter": 12_000, "record_every": 200, "n_draws": 200, "n_train": 500}
SHORT = {"n_iter": 60, "record_every": 10, "n_draws": 10, "n_train": 100}


@dataclass(frozen=True)
class Setting:
    """What a table of laws and seeds is made at."""

    data: str = "digits"
    loss: str = "squared_error"
    lr: float = 1.0
    batch_size: int = 16

    @property
    def name(self):
        """Return a name for files."""
        return f"{self.data}-{self.loss}-lr{self.lr:g}-m{self.batch_size}"


# The first is what is claimed; the others say how far it carries.
SETTINGS = {
    Setting(): LAWS,
    Setting(lr=2.0): ("gd", *STAY, *MOVE, *CONTROLS),
    Setting(data="fashion_mnist"): (*CHEAP, "gld_leading", "gld_hessian"),
    Setting(loss="cross_entropy"): (*CHEAP, "gld_leading", "gld_hessian"),
    Setting(batch_size=8): CHEAP,
    Setting(batch_size=32): CHEAP,
}


# %%
# Data and network
# ----------------


def load(data, n_train):
    """Return X, y, X_test, y_test with y the classes."""
    if data == "digits":
        X, y = load_digits(return_X_y=True)
        X = (X / 16 - 0.3) / 0.37
        return X[:n_train], y[:n_train], X[n_train:], y[n_train:]
    X, y = fetch_fashion_mnist(return_X_y=True)
    X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)
    return pooled(X[:n_train]), y[:n_train], pooled(X_test), y_test


def pooled(images):
    """Return means over squares of two by two pixels, centred, as rows."""
    small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(images), -1)
    return (small.astype(np.float64) - 0.3) / 0.37


def make_network(n_inputs):
    network = nn.Sequential(
        nn.Linear(n_inputs, 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    return network


class Accuracy:
    """The share of images whose largest output is that of their class."""

    def __init__(self, X, y):
        self.network = make_network(X.shape[1]).double()
        self.X, self.y = torch.as_tensor(X), torch.as_tensor(y)

    def __call__(self, risk, theta):
        params = risk.layout.views(theta)
        named = dict(zip(risk.layout.names, params, strict=True))
        outputs = functional_call(self.network, named, self.X)
        return (outputs.argmax(1) == self.y).double().mean()


# %%
# A unit
# ------


def run_unit(setting, law, seed, sizes):
    """Return what is stored of one law with one seed."""
    X, y, X_test, y_test = load(setting.data, sizes["n_train"])
    squared = setting.loss == "squared_error"
    kind = NoisyDiffusionRegressor if squared else NoisyDiffusionClassifier
    method, params = VARIANTS.get(law, (law, PARAMS.get(law)))
    smaller = SMALLER_STEPS.get(law, 1)
    model = kind(
        make_network,
        module_params={"n_inputs": X.shape[1]},
        loss=setting.loss,
        method=method,
        method_params=params,
        lr=setting.lr / smaller,
        batch_size=setting.batch_size,
        n_components=K,
        max_iter=sizes["n_iter"] * smaller,
        record_every=sizes["record_every"] * smaller,
        dtype="float64",
        random_state=seed,
        on_divergence="stop",
        metrics={
            "stability": Stability(setting.lr),
            "train_accuracy": Accuracy(X, y),
            "test_accuracy": Accuracy(X_test, y_test),
        },
    )
    model.fit(X, np.eye(10)[y] if squared else y)
    columns = ["iteration", "loss", "gradient_norm", "noise_norm", "stability"]
    rows = model.history_[[*columns, "train_accuracy", "test_accuracy"]]
    rows = rows.assign(iteration=rows["iteration"] // smaller)
    return {
        "setting": asdict(setting),
        "law": law,
        "seed": seed,
        "sizes": sizes,
        "diverged": model.diverged_ or "",
        "rows": rows.to_dict("list"),
        "ends": {} if model.diverged_ else measure(model, sizes["n_draws"]),
    }


class Stability:
    """λ₁η/2."""

    def __init__(self, lr):
        self.lr = lr

    def __call__(self, risk, theta):
        return edge_of_stability(risk, theta, lr=self.lr)


def measure(model, n_draws):
    """Return Tr(H), and Tr(HC) as the mean of εᵀHε, with their standard errors."""
    settings = {"batch_size": model.batch_size, "n_components": K}
    known = METHODS[model.method]().get_params()
    settings = {name: value for name, value in settings.items() if name in known}
    law = make_noise_law(model.method, **settings, **(model.method_params or {}))
    risk, rng = model.risk_, torch.Generator().manual_seed(0)
    theta = risk.params()
    state = law.refresh(risk, theta, rng)
    H, g = HessianOperator(risk, theta), risk.gradient(theta)
    draws = []
    for _ in range(n_draws):
        noise = law.noisy_gradient(risk, theta, state, rng)[1] - g
        draws.append(float(noise @ H.matvec(noise)) / law.n_substeps)
    trace = hessian_trace(risk, theta, rng=0)
    return {
        "hessian_trace": float(trace.value),
        "hessian_trace_stderr": float(trace.stderr),
        "noise_curvature": float(np.mean(draws)),
        "noise_curvature_stderr": float(np.std(draws, ddof=1) / n_draws**0.5),
    }


# %%
# All units, each in a file of its own
# ------------------------------------


def path_of(folder, setting, law, seed):
    name = re.sub(r"[^A-Za-z0-9_]+", "-", law).strip("-")
    return folder / setting.name / f"{name}-seed{seed}.json"


def run_missing(arguments, settings, sizes):
    for setting, laws in settings.items():
        # Cheap laws first, seed by seed: what is there is there for all of them.
        laws = sorted(laws, key=lambda law: law not in CHEAP)
        for law in (name for name in laws if name in arguments.laws):
            for seed in arguments.seeds:
                path = path_of(arguments.output, setting, law, seed)
                if not path.exists():
                    _record.store(path, run_unit, setting, law, seed, sizes)
                    print(path, flush=True)


def collect(arguments, settings):
    """Return a row a unit, with its late λ₁η/2, and how many are missing."""
    rows, missing = [], []
    for setting, laws in settings.items():
        for law in laws:
            for seed in arguments.seeds:
                path = path_of(arguments.output, setting, law, seed)
                if path.exists():
                    rows.append(summarised(json.loads(path.read_text()), setting))
                else:
                    missing.append(f"{setting.name}: {law}, seed {seed}")
    return pd.DataFrame(rows), missing


def summarised(unit, setting):
    table = pd.DataFrame(unit["rows"])
    late = table[table["iteration"] > 2 / 3 * unit["sizes"]["n_iter"]]
    row = {"setting": setting.name, "law": unit["law"], "seed": unit["seed"]}
    row["diverged"] = bool(unit["diverged"])
    if not row["diverged"]:
        row["stability"] = late["stability"].mean()
        row["loss"] = late["loss"].mean()
        row["test_accuracy"] = table["test_accuracy"].iloc[-1]
        row |= unit["ends"]
    return row


# %%
# The verdict
# -----------

# In which direction a flatter minimum differs from GD's, and by how much at least.
CLAIMS = {"stability": -1, "test_accuracy": 1}


def judge(units):
    """Return differences from GD and verdicts, one row for a law and a quantity."""
    rows = []
    for setting, part in units.groupby("setting", sort=False):
        for column, direction in CLAIMS.items():
            values = part.pivot(index="seed", columns="law", values=column)
            losses = part.pivot(index="seed", columns="law", values="loss")
            for law in values.columns.drop("gd", errors="ignore"):
                if "gd" not in values:
                    continue
                pair = values[[law, "gd"]].dropna()  # of the seeds that both have
                loss = losses.loc[pair.index].mean()
                found = paired_difference(pair[law], pair["gd"])
                least = 0.2 * pair["gd"].mean() if column == "stability" else 0.005
                rows.append(
                    {
                        "setting": setting,
                        "column": column,
                        "law": law,
                        "mean": pair[law].mean(),
                        "gd": pair["gd"].mean(),
                        "difference": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "n": found.n,
                        "n_diverged": int(part[part["law"] == law]["diverged"].sum()),
                        "loss ratio": loss[law] / loss["gd"],
                        **verdicts(law, found, direction, least),
                    }
                )
    return pd.DataFrame(rows)


def verdicts(law, found, direction, least):
    """Return what a law does, and what that says of the claim on it."""
    certain = min(direction * found.low, direction * found.high) > 0
    large = direction * found.mean >= least
    within = -least < found.low and found.high < least
    does = "moves" if certain and large else "stays" if within else "between"
    claim = ""
    if law in MOVE:
        one = does != "moves" and (certain or large)
        claim = "reproduced" if does == "moves" else "partly" if one else "not"
    if law in STAY:
        claim = "reproduced" if does == "stays" else "not"
    return {"does": does, "claim": claim}


SAYS = {
    "moves": "noise with SGD's leading directions leads to flatter minima than GD's",
    "stays": "isotropic noise, and noise with SGD's variances alone, does not",
    "test_accuracy": "and these generalise better",
}


def claims(units):
    """Return what the paper's claims came to at each setting, the laws together.

    Reproduced if the claim is on each of the laws that have two seeds or more, partly
    if it is, or partly, on some. A law that diverged with all of its seeds neither
    stays nor moves.
    """
    table = judge(units).query("n > 1 or n_diverged > 1")
    found = []
    for setting, part in table.groupby("setting", sort=False):
        groups = {
            "moves": part[(part["column"] == "stability") & part["law"].isin(MOVE)],
            "stays": part[(part["column"] == "stability") & part["law"].isin(STAY)],
            "test_accuracy": part[
                (part["column"] == "test_accuracy") & part["law"].isin(MOVE)
            ],
        }
        for name, rows in groups.items():
            if len(rows):
                verdicts_found = set(rows["claim"])
                whole = verdicts_found == {"reproduced"}
                found.append(
                    Claim(
                        f"section 5, at the edge of stability: {setting}",
                        SAYS[name],
                        graded(whole, verdicts_found != {"not"}),
                        differences(rows),
                    )
                )
    return found


def differences(rows):
    """Return the differences of some laws from GD, as text."""
    what = {"stability": "late λ₁η/2", "test_accuracy": "test accuracy"}
    title = what[rows["column"].iloc[0]]
    parts = [f"{title}, GD {rows['gd'].mean():.3f}; less that:"]
    for _, row in rows.iterrows():
        lost = row["n_diverged"]
        also = f", {lost} diverged" if lost else ""
        text = shown(row["difference"], row["low"], row["high"], digits=2)
        own = f"{text}, n = {row['n']}{also}" if row["n"] > 1 else also.lstrip(", ")
        parts.append(f"{row['law']} {own};")
    return " ".join(parts).rstrip(";")


# %%
# The picture
# -----------

COLORS = {"gd": "black"}
COLORS |= dict(zip(STAY, ("#0173b2", "#56b4e9", "#029e73"), strict=True))
COLORS |= dict(zip(MOVE, ("#d55e00", "#de8f05", "#cc3311"), strict=True))


def draw(arguments, units, setting):
    """Return the figure: λ₁η/2 over training, and where every run ends."""
    part = units[units["setting"] == setting.name]
    laws = [law for law in LAWS if law in set(part["law"])]
    counts = part.groupby("law")["seed"].nunique()
    least, most = counts.min(), counts.max()
    n_seeds = f"{most}" if least == most else f"{least} to {most}"
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        height = max(4.8, 0.28 * len(laws))
        figure, axes = plt.subplots(1, 2, figsize=(12, height), layout="constrained")
        for law in laws:
            if law in COLORS:
                draw_curve(axes[0], arguments, part, setting, law)
        draw_ends(axes[1], part, laws)
        for line in (axes[0].axhline, axes[1].axvline):
            line(1, color="0.6", lw=1, ls=":", zorder=0)
        axes[0].set(xlabel="iterations", ylabel=r"$\lambda_1\eta/2$")
        axes[0].legend(frameon=False, ncols=2, fontsize="small")
        figure.suptitle(
            f"{setting.data}, {setting.loss.replace('_', ' ')}, η = {setting.lr:g}, "
            f"m = {setting.batch_size}: {n_seeds} seeds a law",
            fontsize="medium",
        )
        sns.despine(figure)
    return figure


def draw_curve(ax, arguments, part, setting, law):
    runs = []
    for seed in part.query("law == @law and not diverged")["seed"]:
        unit = json.loads(path_of(arguments.output, setting, law, seed).read_text())
        table = pd.DataFrame(unit["rows"])
        runs.append(table.set_index("iteration")["stability"])
    if runs:
        table = pd.concat(runs, axis=1)
        mean = table.mean(axis=1)
        ax.plot(mean.index, mean, color=COLORS[law], lw=1.6, label=law)
        band = table.min(axis=1), table.max(axis=1)
        ax.fill_between(mean.index, *band, color=COLORS[law], alpha=0.15, lw=0)


def draw_ends(ax, part, laws):
    rng = np.random.default_rng(0)
    losses = part.groupby("law")["loss"].mean()
    for i, law in enumerate(laws):
        own = part[part["law"] == law]
        color = COLORS.get(law, "0.45")
        equal = 1 / 3 <= losses[law] / losses.get("gd", np.nan) <= 3
        values = own["stability"].dropna()
        y = i + rng.uniform(-0.15, 0.15, len(values))
        fill = color if equal else "white"
        ax.plot(values, y, "o", color=color, mfc=fill, ms=4.5, alpha=0.8)
        if len(values):
            ax.plot([values.mean()] * 2, [i - 0.35, i + 0.35], color="0.2", lw=1.5)
        if own["diverged"].any():
            text = f"{own['diverged'].sum()} of {len(own)} diverged"
            ax.annotate(text, (0.02, i), va="center", fontsize="x-small", color="0.4")
    ax.set(yticks=range(len(laws)), xlabel=r"$\lambda_1\eta/2$, mean of the last third")
    ax.set_yticklabels(laws, fontsize="small")
    ax.set_title("hollow: another training loss", loc="left", fontsize="small")
    ax.set(xlim=(0, None), ylim=(len(laws) - 0.4, -0.6))


# %%
def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the whole protocol")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--laws", nargs="+", default=LAWS, choices=LAWS, metavar="LAW")
    parser.add_argument("--first", action="store_true", help="the first setting only")
    parser.add_argument(
        "--output", type=Path, default=Path("edge-of-stability-output"), metavar="DIR"
    )
    parser.add_argument("--plot-only", action="store_true", help="what is there")
    arguments = parser.parse_args(argv)
    if arguments.seeds is None:
        arguments.seeds = SEEDS if arguments.full else SEEDS[:2]
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    sizes = FULL if arguments.full else SHORT
    settings = SETTINGS if arguments.full else {Setting(): ("gd", "sgd", "gld_dynamic")}
    if arguments.first:
        settings = {Setting(): settings[Setting()]}
    if not arguments.plot_only:
        run_missing(arguments, settings, sizes)
    units, missing = collect(arguments, settings)
    if units.empty:
        raise SystemExit(f"No unit is in {arguments.output}: run without --plot-only.")
    table = judge(units)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"\n{len(units)} units, {len(missing)} missing.")
    _record.store(arguments.output / "verdicts.json", lambda: table.to_dict("list"))
    for setting in settings:
        if setting.name in set(units["setting"]):
            path = arguments.output / f"{setting.name}.png"
            draw(arguments, units, setting).savefig(path, dpi=120)
            print(path)


if __name__ == "__main__":
    main()
