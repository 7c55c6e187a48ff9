"""
Gradient noise along the curvature: fitting a cubic
===================================================

Figures 1, 2, 8 and 9 of arXiv 1803.00195: SGD with batches of 5 fits 20 points of
y = (x + 1/2) x (x - 1/2) by ReLU networks of 251, 141 and 103 parameters.
The claims: late in training (i) |cos| of the leading eigenvectors of H and Σ approaches
1 and (ii) their eigenvalues agree once each is divided by its matrix's Frobenius norm;
(iii) the noise, √(η Tr(Σ)/m), is overwhelmingly larger than the gradient, ‖g₀‖.

The protocol: PyTorch's initialisation, batches with replacement, constant η = 0.05,
0.05 and 0.1; 20,000 iterations (the paper does not state how many), ten seeds for
initialisation and batches. H and Σ are dense and in float64, over all 20 points.
Pairs of eigenvectors swap where eigenvalues cross, so that the overlap of the leading
*subspaces*, (1/k)‖UᵀV‖²_F, stands beside |cos|; two random ones have k/D. Beside
√(η Tr(Σ)/m), whose units are not the gradient's, stands √(Tr(Σ)/m), whose units are.

What came out (``benchmarks/results/paper/cubic_regression.json``; late is the last
quarter): the first three pairs align within the first thousand iterations, from 0.1 to
0.5 (pairs 2 and 3) to above 0.9, and then get slightly *worse*: late |cos| of pair 1 is
0.91, 0.93 and 0.86 for the three networks (95 % intervals of ±0.06, 0.05, 0.09), from
0.97 to 0.99 at initialisation. So (i) holds as far as "aligned", not as "approaches 1".
The fourth pair of the largest network does not align reliably (0.61 ± 0.16). (ii) Late
normalised eigenvalues differ by 0.02 to 0.04 (first), 0.09 to 0.14 (second) and 0.03
to 0.06 (third); good for the first, less so for the second, whose size is 0.2 to 0.3.
(iii) did **not** come out: √(η Tr(Σ)/m) is a third to a half of ‖g₀‖ late, and below it
at nine records of ten. In the gradient's own units the noise is the larger, 1.4 to 2.1
times (geometric means), which is not "overwhelmingly": SGD shakes θ across the sharpest
direction, and there ‖g₀‖ does not vanish.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from _claims import Claim, graded, interval, shown
from _record import obtain, parse_arguments, save_figure

from flatmin import EmpiricalRisk, make_noise_law
from flatmin.curvature import GradientCovarianceOperator, HessianOperator
from flatmin.datasets import make_cubic_regression
from flatmin.modules import cubic_regression_mlp

BATCH_SIZE = 5
LR = {251: 0.05, 141: 0.05, 103: 0.1}
N_PAIRS = {251: 4, 141: 3, 103: 3}  # as in the paper's figures


# %%
# One run
# -------


def make_risk(module, n_samples):
    X, y = make_cubic_regression(n_samples)
    return EmpiricalRisk(module, "squared_error", X, y[:, None], dtype="float64")


def spectrum(matrix, k):
    """Return the k largest eigenvalues over the Frobenius norm, and their vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    norm = torch.linalg.matrix_norm(matrix)
    return values.flip(-1)[:k] / norm, vectors.flip(-1)[:, :k]


def measure(train, test, theta, lr, k):
    H = HessianOperator(train, theta).to_dense()
    S = GradientCovarianceOperator(train, theta).to_dense()
    lambdas, U = spectrum(H, k)
    gammas, V = spectrum(S, k)
    products = U.mT @ V
    noise = S.trace() / BATCH_SIZE
    return {
        "loss": train.value(theta),
        "test_loss": test.value(theta),
        "cosines": products.diagonal().abs(),
        "overlap": products.square().sum() / k,
        "hessian_eigenvalues": lambdas,
        "covariance_eigenvalues": gammas,
        "gradient_norm": train.gradient(theta).norm(),
        "noise_norm": (lr * noise).sqrt(),  # the paper's
        "noise_norm_in_gradient_units": noise.sqrt(),
    }


def run(n_params, seed, n_iter, record_every):
    """Return what was measured, each as a list over iterations."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = cubic_regression_mlp(n_params)
    train, test = make_risk(module, 20), make_risk(module, 100)
    law, lr = make_noise_law("sgd", batch_size=BATCH_SIZE), LR[n_params]
    theta, rng = train.params(), torch.Generator().manual_seed(seed)
    rows = []
    for t in range(n_iter + 1):
        if t % record_every == 0:
            rows.append(measure(train, test, theta, lr, N_PAIRS[n_params]))
        _, gradient = law.noisy_gradient(train, theta, None, rng)
        theta = theta - lr * gradient
    return {key: torch.stack([row[key] for row in rows]).tolist() for key in rows[0]}


def protocol(full):
    if full:
        return {"n_iter": 20_000, "record_every": 500, "n_seeds": 10}
    return {"n_iter": 1000, "record_every": 100, "n_seeds": 2}


def experiment(arguments):
    sizes = protocol(arguments.full)
    result = {**sizes, "batch_size": BATCH_SIZE, "lr": LR, "networks": {}}
    for n_params in LR:
        runs = []
        for seed in range(arguments.seed, arguments.seed + sizes["n_seeds"]):
            runs.append(run(n_params, seed, sizes["n_iter"], sizes["record_every"]))
            print(
                f"{n_params} parameters, seed {seed}: loss {runs[-1]['loss'][-1]:.2g}"
            )
        keys = runs[0].keys()
        result["networks"][str(n_params)] = {k: [r[k] for r in runs] for k in keys}
    return result


# %%
# The claims, judged over seeds
# -----------------------------


def late(values):
    """Return the mean over the last quarter of the records, for every seed."""
    values = np.asarray(values)
    return values[:, -(values.shape[1] // 4) :].mean(1)


def summary(sample):
    """Return mean and 95 % t interval over seeds."""
    mean, low, high = interval(sample)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def judge(runs):
    """Return what the claims are about, as one array over seeds for each."""
    first = np.asarray(runs["cosines"])[:, 0]
    cosines = late(runs["cosines"])
    judged = {f"late |cos| of pair {i + 1}": c for i, c in enumerate(cosines.T)}
    judged["|cos| of pair 1, late - first"] = cosines[:, 0] - first[:, 0]
    judged["late overlap of the subspaces"] = late(runs["overlap"])
    gaps = np.subtract(runs["hessian_eigenvalues"], runs["covariance_eigenvalues"])
    for i, gap in enumerate(late(np.abs(gaps)).T):
        judged[f"late |difference| of eigenvalue {i + 1}"] = gap
    gradient = np.asarray(runs["gradient_norm"])
    for key in ("noise_norm", "noise_norm_in_gradient_units"):
        ratio = np.divide(runs[key], np.maximum(gradient, 1e-300))
        judged[f"late log10 of {key} / gradient_norm"] = late(np.log10(ratio))
    return judged


# The figures of the cosines and of the norms.
FIGURES = {
    "251": ("figure 1", "figure 2"),
    "141": ("figure 8", "figure 8"),
    "103": ("figure 9", "figure 9"),
}


def claims(result):
    """Judge figures 1, 2, 8 and 9, each network for itself.

    The directions of a pair agree if the interval of its late |cos| lies above 0.8, its
    eigenvalues if that of their late difference lies below 0.1: reproduced if all pairs
    do, partly if the first does. The noise is reproduced if the interval of the late
    mean of log₁₀ of the paper's ratio lies above 0.
    """
    found = []
    for name, runs in result["networks"].items():
        judged = {what: interval(sample) for what, sample in judge(runs).items()}
        pairs = range(1, N_PAIRS[int(name)] + 1)
        cosines = [judged[f"late |cos| of pair {i}"] for i in pairs]
        gaps = [judged[f"late |difference| of eigenvalue {i}"] for i in pairs]
        ratios = [
            judged[f"late log10 of {key} / gradient_norm"]
            for key in ("noise_norm", "noise_norm_in_gradient_units")
        ]
        aligned = [low > 0.8 for _, low, _ in cosines]
        alike = [high < 0.1 for _, _, high in gaps]
        papers, own = (tuple(10**x for x in ratio) for ratio in ratios)
        of_pairs, of_norms = (f"{f}, {name} parameters" for f in FIGURES[name])
        found += [
            Claim(
                of_pairs,
                "late in training leading eigenvectors of H and Σ align",
                graded(all(aligned), aligned[0]),
                "|cos| by pair: " + "; ".join(shown(*c, digits=2) for c in cosines),
            ),
            Claim(
                of_pairs,
                "late in training their normalised eigenvalues agree",
                graded(all(alike), alike[0]),
                "difference by pair: " + "; ".join(shown(*g, digits=2) for g in gaps),
            ),
            Claim(
                of_norms,
                "late in training the noise is overwhelmingly larger than the gradient",
                graded(papers[1] > 1),
                f"√(η Tr(Σ)/m)/‖g₀‖ = {shown(*papers)}, √(Tr(Σ)/m)/‖g₀‖ = "
                f"{shown(*own)}",
            ),
        ]
    return found


def print_table(result):
    for name, runs in result["networks"].items():
        print(
            f"\n{name} parameters, η = {LR[int(name)]}, {result['n_iter']} iterations, "
            f"{result['n_seeds']} seeds: mean [95 % interval], smallest, largest"
        )
        for what, sample in judge(runs).items():
            print(
                f"{what:52}{summary(sample):>22} {min(sample):7.2f} {max(sample):7.2f}"
            )


# %%
# The picture
# -----------
# Medians over seeds; bands from the 10th to the 90th percentile.

COLORS = ["#0173b2", "#de8f05", "#029e73", "#cc78bc"]


def band(ax, x, sample, color, label=None, ls="-"):
    low, middle, high = np.percentile(sample, [10, 50, 90], axis=0)
    ax.plot(x, middle, color=color, ls=ls, lw=1.8, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def draw(result):
    figure, axes = plt.subplots(3, 4, figsize=(18, 11), layout="constrained")
    x = np.arange(0, result["n_iter"] + 1, result["record_every"]) / 1000
    for row, (name, runs) in zip(axes, result["networks"].items(), strict=True):
        runs = {key: np.asarray(values) for key, values in runs.items()}
        loss, cosines, eigenvalues, norms = row
        band(loss, x, runs["loss"], COLORS[0], "training")
        band(loss, x, runs["test_loss"], COLORS[1], "test", "--")
        for i, color in enumerate(COLORS[: runs["cosines"].shape[-1]]):
            band(cosines, x, runs["cosines"][..., i], color, f"pair {i + 1}")
            band(eigenvalues, x, runs["hessian_eigenvalues"][..., i], color)
            dashed = runs["covariance_eigenvalues"][..., i]
            band(eigenvalues, x, dashed, color, ls="--")
        band(cosines, x, runs["overlap"], "black", "subspaces", ":")
        band(norms, x, runs["gradient_norm"], COLORS[0], r"$\|g_0\|$")
        band(norms, x, runs["noise_norm"], COLORS[1],
             r"$\sqrt{\eta\,\mathrm{Tr}(\Sigma)/m}$")  # fmt: skip
        band(norms, x, runs["noise_norm_in_gradient_units"], COLORS[2],
             r"$\sqrt{\mathrm{Tr}(\Sigma)/m}$", "--")  # fmt: skip
        loss.set(ylabel="loss $L$", yscale="log")
        loss.set_title(f"{name} parameters, η = {LR[int(name)]}", loc="left")
        cosines.set(ylabel=r"$|u_i^\top v_i|$; overlap", ylim=(0, 1.02))
        eigenvalues.set(
            ylabel=r"$\lambda_i/\|H\|_F$ (—), $\gamma_i/\|\Sigma\|_F$ (--)",
            ylim=(0, 1.02),
        )
        norms.set(ylabel="norm", yscale="log")
    axes[0, 0].legend(frameon=False)
    for ax in axes[0, [1, 3]]:
        ax.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    for ax in axes[-1]:
        ax.set_xlabel("thousand iterations")
    sns.despine(figure)
    return figure


# %%
# What is robust
# --------------


def check(result):
    """Assert what holds at every seed, however short the run."""
    for runs in result["networks"].values():
        assert (late(runs["loss"]) < np.asarray(runs["loss"])[:, 0]).all()
        values = np.asarray(runs["overlap"])
        assert ((values > -1e-9) & (values < 1 + 1e-9)).all()


# %%
def main(argv=None):
    arguments = parse_arguments(__doc__, argv)
    result = obtain(arguments, experiment)
    print_table(result)
    save_figure(draw(result), arguments)
    check(result)


if __name__ == "__main__":
    main()
