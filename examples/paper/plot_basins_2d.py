"""
Escaping from a sharp basin in two dimensions
=============================================

Figures 3 and 10 of arXiv 1803.00195: a sharp basin around (1, 1) and a flat one around
(-1, -1), equally deep. All dynamics start in the sharp minimum.
The claim: GLD Hessian reaches the flat minimum fastest, SGD and GLD leading follow, GD
and isotropic noise hardly come out.

The protocol has three variants. Every run has data xᵢ and noise of its own; a run
succeeds if both coordinates of its last point are less than -0.5, the released code's
rule.

text
    Appendix B as printed. It is **unstable**: at η = 0.1 and λ_max = 205 plain gradient
    descent has η λ_max = 20 > 2 and leaves the sharp minimum without any noise, in
    every run, so nothing follows from who escapes. At a stable η (0.0095, 0.008) its
    GLD Hessian, with σ_H = 1, and its GLD const have less noise than SGD, not the same.
released_code
    The code that the authors published: another surface, η = 0.005, 500 iterations, no
    SGD. It adds noise to the weights, not scaled by η, of total variance τ = 0.01 for
    every shape. In gradient units, which are flatmin's, that is Tr(C) = τ/η² = 400,
    some ninety times Tr(Σ) at the start.
matched
    The text's surface with the noise of SGD at m = 1, Tr(C) = Tr(Σ) for all, at a
    stable η. It is the clean form of the paper's question: does the shape matter?

What came out (``benchmarks/results/paper/basins_2d.json``; 10,000 runs, intervals of at
most ±1 %): in both sound variants noise that follows the curvature escapes far more
often than isotropic noise of equal size, in which the paper is right. matched: dynamic
8 %, diagonal 32 %, leading 59 %, Hessian 49 %, first eigenvector 59 %, SGD 20 %.
released_code: const and diagonal 1 %, leading 33 %, Hessian 26 %, first eigenvector
41 %. GLD Hessian is not the fastest: at equal size GLD leading is before it. On the
text's surface Σ = .01 H² at the start, more concentrated on the sharp direction than H
(Tr(HC) of 81,000 against 76,000); in the released code Σ = .02 H, and what sets the two
apart happens on the way, which was not examined. SGD, of the same covariance as GLD
leading, escapes a third as often, probably because a choice among 100 gradients has not
a Gaussian's tails. For Gaussian noise the mean first-exit time rises with 1/Tr(HC), in
matched by a factor of ten from leading to dynamic; SGD needs four times as long as
leading at the same Tr(HC).

The earlier simulation, in the table, agrees. Its ranges miss ours by up to five points
in places, which is its own error at 100 runs; and it gave all runs of a repetition the
same data, while the success of GLD leading is 32 to 71 % by set of data (matched), 31
to 39 % (released_code). "x ~ N(0, .01)" is read as a variance; with a
standard deviation of .01 the text's η = 0.1 gives the same.
"""

# %%
import warnings
from dataclasses import asdict, dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from _claims import Claim, graded
from _record import obtain, parse_arguments, save_figure
from scipy.stats import spearmanr

from flatmin import NoiseLaw, expected_sharpness, make_noise_law
from flatmin.dynamics import simulate
from flatmin.risk import TwoBasinsRisk

# %%
# The laws of each variant
# ------------------------
# The released code gives every covariance the trace τ in the units of the weights. None
# of flatmin's laws does that, since no size of SGD's noise comes into it; a law of
# one's own is one class.

TOTAL_VARIANCE = 0.01


class FixedTrace(NoiseLaw):
    """C = τ C' / Tr(C'): the shape of another law's covariance C', at a fixed size."""

    name = "fixed_trace"

    def __init__(self, law, *, total=1.0):
        self.law = law
        self.total = total

    def refresh(self, risk, theta, rng, previous=None):
        previous = None if previous is None else previous[0]
        state = self.law.refresh(risk, theta, rng, previous)
        trace = self.law.trace(risk, theta, state)
        # In the flat basin of data without spread there is no shape to rescale.
        return state, torch.where(trace > 0, self.total / trace, 0)

    def noisy_gradient(self, risk, theta, state, rng):
        loss, gradient = risk.value_and_gradient(theta)
        _, noisy = self.law.noisy_gradient(risk, theta, state[0], rng)
        return loss, gradient + state[1].sqrt()[..., None] * (noisy - gradient)

    def covariance(self, risk, theta, state):
        return state[1] * self.law.covariance(risk, theta, state[0])


def sgd_noise(*names, **hessian):
    """Laws with SGD's covariance at m = 1, or parts of it, renewed at every step."""
    settings = {
        "gld_leading": {"source": "examples", "n_components": 2},
        "gld_hessian": {"refresh_every": 1, **hessian},
        "gld_first_eigenvector": {"refresh_every": 1},
    }
    return {
        name: make_noise_law(name, batch_size=1, **settings.get(name, {}))
        for name in names
    }


def text_laws(lr):
    shaped = ("gld_dynamic", "gld_diagonal", "gld_leading", "gld_hessian", "sgd")
    const = {"gld_const": make_noise_law("gld_const", sigma=2.0)}
    return {"gd": make_noise_law("gd")} | const | sgd_noise(*shaped, match="none")


def matched_laws(lr):
    shaped = ("gld_dynamic", "gld_diagonal", "gld_leading", "gld_hessian")
    more = ("gld_first_eigenvector", "sgd")
    return {"gd": make_noise_law("gd")} | sgd_noise(*shaped, *more)


def released_laws(lr):
    total = TOTAL_VARIANCE / lr**2
    shaped = sgd_noise(
        "gld_diagonal", "gld_leading", "gld_hessian", "gld_first_eigenvector"
    )
    fixed = {name: FixedTrace(law, total=total) for name, law in shaped.items()}
    const = make_noise_law("gld_const", sigma=(total / 2) ** 0.5)
    return {"gd": make_noise_law("gd"), "gld_const": const} | fixed


# %%
# The settings
# ------------
# ``earlier`` are the success rates in percent of an independent simulation made before
# this library existed, 100 runs in most cells; ranges are over its repetitions.


@dataclass
class Setting:
    variant: str
    lr: float
    n_iter: int
    laws: callable
    earlier: dict
    spread: float = 1.0  # of the data, in units of the variant's


def columns(*cells):
    names = ("gd", "gld_const", "gld_dynamic", "gld_diagonal", "gld_leading")
    names += ("gld_hessian", "gld_first_eigenvector", "sgd")
    return {name: cell for name, cell in zip(names, cells, strict=True) if cell}


SETTINGS = {
    "text": Setting(
        "text", 0.1, 600, text_laws,
        columns("100", "84", "100", "100", "100", "93", "", "100"),
    ),
    "released_code": Setting(
        "released_code", 0.005, 500, released_laws,
        columns("0", "0-2", "", "0-2", "25-32", "26-39", "40-48", ""),
    ),
    "matched": Setting(
        "matched", 0.006, 600, matched_laws,
        columns("0", "", "6-8", "33-44", "58-68", "49-50", "56-65", "16-26"),
    ),
}  # fmt: skip
MORE_SETTINGS = {
    "matched, η = 0.007": Setting(
        "matched", 0.007, 600, matched_laws,
        columns("0", "", "29-34", "66-76", "89-93", "88-90", "93-94", "58-59"),
    ),
    "text, η = 0.0095": Setting(
        "text", 0.0095, 600, text_laws,
        columns("0", "0", "98", "100", "100", "51", "", "100"),
    ),
    "text, η = 0.008": Setting(
        "text", 0.008, 600, text_laws,
        columns("0", "0", "63", "90", "99", "12", "", "94"),
    ),
    "text, x of std 0.01": Setting(
        "text", 0.1, 600, text_laws,
        columns("100", "84", "100", "100", "100", "93", "", "100"), spread=0.1,
    ),
}  # fmt: skip


def make_risk(setting, n_runs, rng):
    risk = TwoBasinsRisk.from_paper(setting.variant, chains=(n_runs,), rng=rng)
    return TwoBasinsRisk(setting.spread * risk.offsets, risk.angle)


# %%
# Runs
# ----
# 100 runs keep their trajectories; more come in blocks, which stay in the cache.

N_RUNS, BLOCK, RECORD_EVERY = 100, 250, 20


def run_blocks(setting, label, law, n_runs, rng):
    """Return the ends of many runs, as one Simulation."""
    runs = []
    for _ in range(n_runs // BLOCK):
        risk = make_risk(setting, BLOCK, rng)
        runs.append(run_chains(setting, risk, {label: law}, rng)[label])
    ends = ("theta", "success", "exit_times", "censored")
    pooled = {end: torch.cat([getattr(run, end) for run in runs]) for end in ends}
    return replace(runs[0], **pooled)


def run_chains(setting, risk, laws, rng, **options):
    with warnings.catch_warnings():
        # The table says it.
        warnings.filterwarnings("ignore", "η λ_max", UserWarning)
        return simulate(
            risk,
            laws,
            risk.sharp_minimum,
            lr=setting.lr,
            n_iter=setting.n_iter,
            n_chains=len(risk.offsets),
            reached=risk.in_flat_basin,
            rng=rng,
            **options,
        )


def escape_indicator(risk, law):
    """Tr(HC) at the sharp minimum, the mean over sets of data."""
    theta, rng = risk.sharp_minimum.expand(len(risk.offsets), 2), torch.Generator()
    state = law.refresh(risk, theta, rng)
    C = law.covariance(risk, theta, state).to_dense()
    return float((risk.hessian(theta) * C).sum((-2, -1)).mean())


def describe(run):
    """Return rates with Wilson intervals, and the mean first-exit time."""
    exit_time, n_exits = run.mean_exit_time(), run.exit_rate().count
    means = {"value": float(exit_time), "stderr": float(exit_time.stderr)}
    return {
        "success": asdict(run.success_rate()),
        "visited": asdict(run.exit_rate()),
        "exit_time": {**means, "n_exits": n_exits} if n_exits else None,
    }


def measure(name, setting, seed, n_more):
    """Run all laws of a setting."""
    risk, laws = make_risk(setting, N_RUNS, seed), setting.laws(setting.lr)
    sharpest = float(torch.linalg.eigvalsh(risk.hessian(risk.sharp_minimum)).max())
    runs = run_chains(setting, risk, laws, seed, record_every=RECORD_EVERY)
    methods = {}
    for label, law in laws.items():
        run = runs[label]
        # The mean over runs needs fewer draws than the paper's 100 for one run.
        sharpness = expected_sharpness(risk, run.trajectory, sigma=0.1, n_draws=20)
        methods[label] = {
            "few": describe(run),
            "trace_HC": escape_indicator(risk, law),
            "sharpness": sharpness.value.mean(1).tolist(),
            "path": run.trajectory[:, 0].tolist(),
        }
        if n_more:
            rng = torch.Generator().manual_seed(seed + 1)
            many = run_blocks(setting, label, law, n_more, rng)
            methods[label]["many"] = describe(many)
        print(f"{name}: {label} {run.success_rate()}", flush=True)
    return {
        "variant": setting.variant,
        "lr": setting.lr,
        "n_iter": setting.n_iter,
        "spread": setting.spread,
        "lr_times_sharpest": setting.lr * sharpest,
        "offsets": risk.offsets[0].tolist(),
        "methods": methods,
    }


def success_by_data(setting, label, n_sets):
    """Return success rates where one set of data serves BLOCK runs, by set of data."""
    law, rates = setting.laws(setting.lr)[label], []
    for seed in range(n_sets):
        one = make_risk(setting, 1, seed)
        risk = TwoBasinsRisk(one.offsets.expand(BLOCK, -1, -1), one.angle)
        run = run_chains(setting, risk, {label: law}, seed)[label]
        rates.append(run.success_rate().value)
    return rates


def experiment(arguments):
    settings, n_more = SETTINGS, dict.fromkeys(SETTINGS, 0)
    if arguments.full:
        settings = SETTINGS | MORE_SETTINGS
        n_more = dict.fromkeys(SETTINGS, 10_000) | dict.fromkeys(MORE_SETTINGS, 1000)
    n_sets = 12 if arguments.full else 0
    return {
        "n_runs": N_RUNS,
        "success_by_data": {
            name: {
                label: success_by_data(SETTINGS[name], label, n_sets)
                for label in ("gld_leading", "gld_hessian")
            }
            for name in ("released_code", "matched")
            if n_sets
        },
        "settings": {
            name: measure(name, setting, arguments.seed, n_more[name])
            for name, setting in settings.items()
        },
    }


# %%
# The table
# ---------


def percent(rate):
    """Return a rate and its interval in percent; one of 10,000 needs a decimal."""
    digits = 1 if rate["n"] > 1000 else 0
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def best(cell):
    return cell.get("many", cell["few"])


def print_table(result):
    print(
        f"\nSuccess in %, with 95 % Wilson intervals: 'few' over {result['n_runs']} "
        "runs, 'many' over more\n(--full); 'earlier' is the independent simulation. "
        "'visited': some iterate was in the flat basin.\n'exit': mean first-exit time "
        "in iterations (exponential, censored). Tr(HC) at the start, in gradient units."
    )
    for name, setting in result["settings"].items():
        unstable = setting["lr_times_sharpest"] > 2
        print(
            f"\n{name}: η = {setting['lr']}, {setting['n_iter']} iterations, η λ_max = "
            f"{setting['lr_times_sharpest']:.2f}"
            + (" > 2: UNSTABLE without any noise" if unstable else "")
        )
        print(
            f"{'':22}{'earlier':>8} {'few':>15} {'many':>18} "
            f"{'visited':>18} {'exit':>7} {'Tr(HC)':>8}"
        )
        for label, cell in setting["methods"].items():
            numbers, many = best(cell), cell.get("many")
            exit_time = numbers["exit_time"]
            print(
                f"{label:22}{EARLIER[name].get(label, '.'):>8} "
                f"{percent(cell['few']['success']):>15} "
                f"{percent(many['success']) if many else '.':>18} "
                f"{percent(numbers['visited']):>18} "
                f"{exit_time['value'] if exit_time else np.inf:7.0f} "
                f"{cell['trace_HC']:8.0f}"
            )

    for name, laws in result["success_by_data"].items():
        for label, rates in laws.items():
            low, high = 100 * min(rates), 100 * max(rates)
            print(
                f"\n{name}, {label}: {low:.0f} to {high:.0f} % by set of data, where "
                f"{BLOCK} runs share one of {len(rates)}"
            )


CURVED = ("gld_leading", "gld_hessian")


def claims(result):
    """Judge figures 3 and 10 in the two sound variants, by the success of the runs.

    One law escapes more often than another if the whole interval of its rate lies
    above the other's.
    """
    found = []
    for name, control in (("matched", "gld_dynamic"), ("released_code", "gld_const")):
        methods = result["settings"][name]["methods"]
        rates = {law: best(cell)["success"] for law, cell in methods.items()}

        def above(law, other, rates=rates):
            return rates[law]["low"] > rates[other]["high"]

        def shown(*laws, rates=rates):
            return "; ".join(f"{law} {percent(rates[law])} %" for law in laws)

        plain = [law for law in ("gld_const", "gld_dynamic", "gd") if law in rates]
        escapes = [above(law, other) for law in CURVED for other in plain]
        where = f"figures 3 and 10, {name.replace('_', ' ')}"
        found += [
            Claim(
                where,
                "noise that follows the curvature escapes from the sharp basin, "
                "isotropic noise of its size and GD hardly do",
                graded(all(escapes), any(escapes)),
                shown(*CURVED, control, "gd"),
            ),
            Claim(
                where,
                "GLD Hessian escapes most often",
                graded(above("gld_hessian", "gld_leading")),
                shown(*CURVED, "gld_first_eigenvector"),
            ),
        ]
        if "sgd" in rates:
            over = above("sgd", control), not above("gld_leading", "sgd")
            found.append(
                Claim(
                    where,
                    "SGD escapes as GLD leading does",
                    graded(all(over), over[0]),
                    shown("sgd", "gld_leading", control),
                )
            )
    return found


EARLIER = {name: s.earlier for name, s in (SETTINGS | MORE_SETTINGS).items()}

# %%
# The pictures
# ------------
# Cool colours: noise that does not follow the curvature; warm ones: noise that does.

LOOKS = {
    "gd": ("black", "o"),
    "gld_const": ("#949494", "s"),
    "gld_dynamic": ("#0173b2", "D"),
    "gld_diagonal": ("#56b4e9", "^"),
    "gld_leading": ("#d55e00", "v"),
    "gld_hessian": ("#de8f05", "P"),
    "gld_first_eigenvector": ("#cc78bc", "X"),
    "sgd": ("#029e73", "*"),
}
TITLES = {
    "text": "the text, η = 0.1 (unstable)",
    "released_code": "the released code, η = 0.005",
    "matched": "matched, η = 0.006",
}


def landscape(setting):
    """Return a grid and L on it, for the data of the first run."""
    angle = TwoBasinsRisk.from_paper(setting["variant"], n_examples=1).angle
    offsets = torch.tensor(setting["offsets"], dtype=torch.float64)
    axis = torch.linspace(-2, 2, 161, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    return axis, TwoBasinsRisk(offsets, angle).value(grid)


def draw_surface(result):
    """Return figure 10: the surface of the text and of the released code."""
    figure = plt.figure(figsize=(11, 5), layout="constrained")
    for i, name in enumerate(("text", "released_code")):
        axis, values = landscape(result["settings"][name])
        ax = figure.add_subplot(1, 2, i + 1, projection="3d")
        w1, w2 = np.meshgrid(axis, axis)
        ax.plot_surface(w1, w2, values, cmap="cividis", rcount=100, ccount=100)
        ax.set(xlabel="$w_1$", ylabel="$w_2$", zlabel="$L(w)$", title=name)
        ax.view_init(elev=35, azim=-115)
    return figure


def draw(result):
    """Return figure 3 for the three variants, and the exit times."""
    figure, axes = plt.subplots(3, 4, figsize=(18, 12.5), layout="constrained")
    for row, name in zip(axes, SETTINGS, strict=True):
        setting = result["settings"][name]
        draw_paths(row[0], setting)
        draw_sharpness(row[1], setting)
        draw_rates(row[2], setting)
        draw_exits(row[3], setting)
        row[0].set_title(TITLES[name], loc="left")
    axes[0, 2].set_title("reached the flat basin", loc="left")
    axes[0, 3].set_title("time to get there", loc="left")
    axes[0, 1].set_title("sharpness, mean of 100 runs", loc="left")
    handles = [
        plt.Line2D([], [], color=color, marker=marker, label=name, lw=1.5)
        for name, (color, marker) in LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    sns.despine(figure)
    return figure


def draw_paths(ax, setting):
    axis, values = landscape(setting)
    levels = [0.1, 0.3, 1, 2, 4, 8, 16]
    ax.contour(axis, axis, values, levels=levels, colors="0.75", linewidths=0.8)
    for name, cell in setting["methods"].items():
        color, marker = LOOKS[name]
        x, y = np.transpose(cell["path"])
        ax.plot(x, y, color=color, lw=0.7, alpha=0.6)
        ax.plot(x[-1], y[-1], marker, color=color, ms=9, mec="white", zorder=3)
    ax.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(-2, 2), ylim=(-2, 2), aspect="equal")


def draw_sharpness(ax, setting):
    for name, cell in setting["methods"].items():
        x = RECORD_EVERY * np.arange(len(cell["sharpness"]))
        color, marker = LOOKS[name]
        ax.plot(x, cell["sharpness"], color=color, marker=marker, markevery=5, ms=5)
    ax.set(xlabel="iteration", ylabel="expected sharpness, $s=0.1$", ylim=(0, None))


def draw_rates(ax, setting):
    """Bars, whiskers of the Wilson interval; the 100 runs in front of the many."""
    names = list(setting["methods"])
    for i, name in enumerate(names):
        cell = setting["methods"][name]
        for key, y, alpha in (("few", i + 0.2, 0.45), ("many", i - 0.2, 1.0)):
            if key in cell:
                rate = cell[key]["success"]
                value, low, high = (100 * rate[k] for k in ("value", "low", "high"))
                ax.barh(y, value, 0.36, color=LOOKS[name][0], alpha=alpha)
                ax.plot([low, high], [y, y], color="0.15", lw=1.2)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="success (%): pale 100 runs, full 10,000")


def draw_exits(ax, setting):
    for name, cell in setting["methods"].items():
        exit_time = best(cell)["exit_time"]
        if exit_time and cell["trace_HC"] > 0:
            color, marker = LOOKS[name]
            x, y = 1e5 / cell["trace_HC"], exit_time["value"]
            # A time is known up to a factor, by the number of exits.
            factor = np.exp(1.96 / exit_time["n_exits"] ** 0.5)
            error = [[y - y / factor], [y * factor - y]]
            ax.errorbar(x, y, error, fmt=marker, color=color, ms=9, capsize=3)
    ax.set(xlabel=r"$10^5/\mathrm{Tr}(HC)$ at the start", yscale="log")
    ax.set_ylabel("mean first-exit time (iterations)")
    low, high = np.log10(ax.get_ylim())
    ax.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))


# %%
# What is robust
# --------------


def check(result):
    """Assert what holds at every seed."""
    settings = result["settings"]
    assert settings["text"]["lr_times_sharpest"] > 2
    text_gd = best(settings["text"]["methods"]["gd"])["success"]
    assert text_gd["low"] > 0.9, "unstable gradient descent leaves without noise"
    isotropic = {"released_code": "gld_const", "matched": "gld_dynamic"}
    for name, control in isotropic.items():
        cells = settings[name]["methods"]
        assert best(cells["gd"])["success"]["count"] == 0
        for shaped in ("gld_leading", "gld_hessian"):
            higher = best(cells[shaped])["success"]["low"]
            assert higher > best(cells[control])["success"]["high"]
        shown = [
            (1 / cell["trace_HC"], best(cell)["exit_time"]["value"])
            for cell in cells.values()
            if cell["trace_HC"] > 0 and best(cell)["exit_time"]
        ]
        rank = spearmanr(*zip(*shown, strict=True)).statistic
        print(f"{name}: rank correlation of exit time with 1/Tr(HC): {rank:.2f}")


# %%
def main(argv=None):
    arguments = parse_arguments(__doc__, argv)
    result = obtain(arguments, experiment)
    print_table(result)
    save_figure(draw(result), arguments)
    save_figure(draw_surface(result), arguments, "_surface")
    check(result)


if __name__ == "__main__":
    main()
