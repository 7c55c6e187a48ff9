"""
Where the noise covariance equals the Hessian
=============================================

Equation 6 of arXiv 1803.00195: for a negative log-likelihood at the true parameter,
E[g gᵀ] = E[∇²ℓ], the two forms of Fisher's information.
The paper infers Σ ≈ H (equation 7) for N large and θ near the truth, and says that how
close they are depends on N, on the model and on ‖θ - θ*‖.

The protocol: logistic regression, x ~ N(0, I₅), P(y = 1) = 1/(1 + exp(-xᵀθ*)), so that
the model is well specified; ‖Σ - H‖_F/‖H‖_F for N from 100 to 100,000 over 20 data sets
(short: to 10,000 over 5), at four points: the truth θ*; the maximum-likelihood θ̂ of
each data set; 0, where the model says p = 1/2 to all; and θ* of *mislabelled* data, a
fifth of whose labels are drawn at random, so that no θ is true. The exponent is the
slope over log N.

What came out (``benchmarks/results/paper/fisher_equals_hessian.json``): at θ* the gap
falls from 0.30 to 0.010, as N^(-0.484 ± 0.007), at θ̂ as N^(-0.500 ± 0.008): equation 6
holds, at the rate of a mean. At 0 the gap stays at 0.133 (there Σ = H - g₀g₀ᵀ exactly),
with wrong labels at 0.25. So equation 7 is a statement about well-specified models near
the truth. A network that has learnt 200 wrong labels is neither; its Σ and H may still
share directions, which the other experiments measure.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from _claims import Claim, graded, interval, shown
from _record import obtain, parse_arguments, save_figure
from scipy.stats import linregress, sem

from flatmin import EmpiricalRisk
from flatmin.curvature import GradientCovarianceOperator, HessianOperator

TRUTH = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.5], dtype=torch.float64)
WRONG = 0.2


# %%
# The gap at a point
# ------------------


def draw_data(n, seed):
    """Return X, labels that follow the model, and labels of which some do not."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.randn(n, len(TRUTH), generator=rng, dtype=torch.float64)
    uniform = torch.rand(3, n, generator=rng, dtype=torch.float64)
    y = (uniform[0] < torch.sigmoid(X @ TRUTH)).double()
    mislabelled = torch.where(uniform[1] < WRONG, (uniform[2] < 0.5).double(), y)
    return X, y, mislabelled


def make_risk(X, y):
    model = torch.nn.Linear(len(TRUTH), 1, bias=False)
    return EmpiricalRisk(model, "binary_cross_entropy", X, y[:, None], dtype="float64")


def maximize_likelihood(risk):
    """Newton's method; a step stays within the model's curvature."""
    theta = TRUTH.clone()
    for _ in range(20):
        gradient = risk.gradient(theta)
        theta = theta - torch.linalg.solve(
            HessianOperator(risk, theta).to_dense(), gradient
        )
    assert risk.gradient(theta).norm() < 1e-10
    return theta


def gap(risk, theta):
    """Return ‖Σ - H‖_F/‖H‖_F."""
    H = HessianOperator(risk, theta).to_dense()
    S = GradientCovarianceOperator(risk, theta).to_dense()
    return float((S - H).norm() / H.norm())


def gaps(n, seed):
    X, y, mislabelled = draw_data(n, seed)
    risk = make_risk(X, y)
    return {
        "truth": gap(risk, TRUTH),
        "maximum likelihood": gap(risk, maximize_likelihood(risk)),
        "zero": gap(risk, torch.zeros_like(TRUTH)),
        "mislabelled": gap(make_risk(X, mislabelled), TRUTH),
    }


def experiment(arguments):
    sizes = [100, 316, 1000, 3162, 10_000]
    sizes += [31_623, 100_000] if arguments.full else []
    n_sets = 20 if arguments.full else 5
    seeds = range(arguments.seed, arguments.seed + n_sets)
    runs = [[gaps(n, seed) for seed in seeds] for n in sizes]
    found = {
        point: [[run[point] for run in row] for row in runs] for point in runs[0][0]
    }
    return {"n_examples": sizes, "n_sets": n_sets, "gaps": found}


# %%
# The exponent
# ------------


def exponents(sizes, values):
    """Return the slope of log gap over log N of each data set."""
    return [
        linregress(np.log(sizes), np.log(column)).slope
        for column in np.transpose(values)
    ]


def claims(result):
    """Judge equations 6 and 7.

    Equation 6 is reproduced if the gap at the truth closes as the error of a mean does:
    the interval of its exponent lies between -0.55 and -0.45. Equation 7 holds at a
    point if the gap with the most examples is below 0.05.
    """
    slope = interval(exponents(result["n_examples"], result["gaps"]["truth"]))
    gap = {point: np.mean(values[-1]) for point, values in result["gaps"].items()}
    near, wrong = gap["maximum likelihood"], gap["mislabelled"]
    return [
        Claim(
            "equation 6",
            "at the true parameter the gradient covariance is the Hessian",
            graded(slope[1] > -0.55 and slope[2] < -0.45, slope[2] < 0),
            f"‖Σ − H‖/‖H‖ falls as N^a with a = {shown(*slope)}, to {gap['truth']:.3f}",
        ),
        Claim(
            "equation 7",
            "so Σ ≈ H near a minimum",
            graded(near < 0.05 and wrong < 0.05, near < 0.05),
            f"‖Σ − H‖/‖H‖ = {near:.3f} at the maximum of the likelihood of a true "
            f"model; {wrong:.2f} where a fifth of the labels is random",
        ),
    ]


def print_table(result):
    sizes = result["n_examples"]
    print("‖Σ - H‖_F/‖H‖_F, means over data sets; exponent of N ± standard error\n")
    print(f"{'at':20}" + "".join(f"{n:>9}" for n in sizes) + f"{'exponent':>18}")
    for point, values in result["gaps"].items():
        slopes = exponents(sizes, values)
        cells = "".join(f"{mean:9.3f}" for mean in np.mean(values, axis=1))
        print(f"{point:20}{cells}{np.mean(slopes):11.3f} ± {sem(slopes):.3f}")


LOOKS = {
    "truth": ("#0173b2", "o", r"the truth $\theta^*$"),
    "maximum likelihood": ("#029e73", "D", r"maximum likelihood $\hat\theta$"),
    "zero": ("#de8f05", "s", r"$\theta = 0$"),
    "mislabelled": ("#cc78bc", "^", r"$\theta^*$, a fifth of the labels random"),
}


def draw(result):
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    sizes = np.array(result["n_examples"])
    for point, (color, marker, label) in LOOKS.items():
        values = np.array(result["gaps"][point])
        ax.plot(sizes, values.mean(1), color=color, marker=marker, label=label)
        low, high = np.percentile(values, [10, 90], axis=1)
        ax.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
    start = np.mean(result["gaps"]["truth"][0])
    ax.plot(
        sizes, start * (sizes / sizes[0]) ** -0.5, "k:", label=r"$\propto N^{-1/2}$"
    )
    ax.set(xscale="log", yscale="log", xlabel="examples $N$")
    ax.set_ylabel(r"$\|\Sigma - H\|_F / \|H\|_F$")
    ax.legend(frameon=False)
    sns.despine(figure)
    return figure


# %%
# What is robust
# --------------


def check(result):
    """At the truth the gap closes as N^(-1/2); elsewhere it stays."""
    sizes = result["n_examples"]
    for point in ("truth", "maximum likelihood"):
        slopes = exponents(sizes, result["gaps"][point])
        assert abs(np.mean(slopes) + 0.5) < 5 * sem(slopes) + 0.02
    for point in ("zero", "mislabelled"):
        assert np.mean(result["gaps"][point][-1]) > 0.05


# %%
def main(argv=None):
    arguments = parse_arguments(__doc__, argv)
    result = obtain(arguments, experiment)
    print_table(result)
    save_figure(draw(result), arguments)
    check(result)


if __name__ == "__main__":
    main()
