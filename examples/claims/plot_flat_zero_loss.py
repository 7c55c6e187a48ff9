"""
Which noise walks to flatter points of zero loss?
=================================================

Where a model fits all examples, minibatch noise vanishes. Label noise goes on, and so
does anticorrelated noise, whose steps cancel. Both are said to walk along the points of
zero loss to flatter ones; plain noise of the same step is said not to.

The inequalities were written before any of their numbers, and the seeds are none of a
pilot's; ``_claim.py`` says how the interval over seeds decides. This is a toy. Without
``--full`` a short version shows that all works, and says nothing about the claim.
"""

# %%
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from _claim import Claim, Inequality, Source
from _descent import descend_to_loss
from _problems import SECOND_SEEDS
from _trial import Trial, main
from plot_sparse_truth import SquaresRisk, stacked_problems
from plot_what_holds_the_edge import digits
from torch import nn

from flatmin import NoisyDiffusionRegressor
from flatmin.curvature import hessian_trace
from flatmin.dynamics import simulate
from flatmin.noise import AntiPGD, GLDConst, LabelNoise

CLAIM = Claim(
    title="Which noise walks to flatter points of zero loss?",
    says="Label noise, and noise whose steps are anticorrelated, move to flatter "
    "points of zero loss; uncorrelated noise does not.",
    sources=(
        Source("G. Blanc et al., arXiv 1904.09080", "abstract"),
        Source("A. Damian, T. Ma, J. Lee, arXiv 2106.06530", "abstract"),
        Source("A. Orvieto et al., arXiv 2202.02831", "abstract"),
    ),
    inequalities=(
        Inequality(
            "label noise: Tr H below 0.8 of gradient descent's",
            "label noise",
            "gradient descent",
            high=float(np.log(0.8)),
        ),
        Inequality(
            "anticorrelated noise: Tr H below 0.8 of gradient descent's",
            "anticorrelated",
            "gradient descent",
            high=float(np.log(0.8)),
        ),
        Inequality(
            "uncorrelated noise of that step: Tr H no smaller",
            "uncorrelated",
            "gradient descent",
            low=0.0,
        ),
    ),
    seeds=tuple(range(20, 28)),
    tuned_on=tuple(range(18)),
    protocol="The model ⟨v∘v, x⟩ of d = 100, 40 normal examples with targets of 5 ones "
    "in w*, loss (⟨v∘v, x⟩ − y)²/4, v = 1 at the start. 20,000 iterations at η = 0.01, "
    "in which the noise acts from the first; then gradient descent goes on to "
    "L ≤ 1e-5, and log Tr H is compared there. Label noise is Gaussian, with the "
    "covariance of one label at a time moved by ±1/2; ξ of the anticorrelated noise "
    "has the standard deviation 0.02 in each parameter, and the uncorrelated noise the "
    "variance of its steps. A seed draws examples, w* and noise.",
    objection="Tr H may fall because L rises: hence one loss for all. With "
    "cross-entropy labels would have to be flipped.",
    would_change="An η or σ at which uncorrelated noise lowers Tr H at that loss.",
)
FINDINGS = (
    "At L ≤ 1e-5 label noise has 0.62 of gradient descent's Tr H (0.61 to 0.64), "
    "anticorrelated noise 0.74 (0.72 to 0.75), in each of eight seeds. Uncorrelated "
    "noise of the same step is above gradient descent on average, but of two kinds: "
    "2.2 to 5.1 times its Tr H in five seeds, and 0.70 to 0.97 times in three.",
    "Two of three turn. Label noise ends at 0.64 of gradient descent's Tr H (0.58 to "
    "0.71). Anticorrelated noise ends at 0.83 (0.80 to 0.86), which is flatter, and "
    "less so than was asked; but uncorrelated noise of the same step ends as flat, at "
    "0.82 (0.77 to 0.87). That its steps cancel is not what takes it there.",
)
LABELS = "gradient descent", "label noise", "anticorrelated", "uncorrelated"
LR, XI = 0.01, 0.02
FULL = {
    "seeds": list(CLAIM.seeds),
    "n_iter": 20_000,
    "quench": 60_000,
    "loss": 1e-5,
}
SHORT = FULL | {
    "seeds": list(CLAIM.tuned_on[:2]),
    "n_iter": 200,
    "quench": 4000,
    "loss": 0.1,
}


# %%
# The laws
# --------
# All seeds are chains of one simulation, each with examples of its own.


def make_law(label, n_examples):
    return {
        "gradient descent": "gd",
        # All labels are moved by z√N/2: the covariance is that of one moved by ±1/2.
        "label noise": LabelNoise(sigma=n_examples**0.5 / 2),
        # A step adds ξₙ₊₁ - ξₙ, of standard deviation √2 ξ.
        "anticorrelated": AntiPGD(sigma=XI, match="none"),
        "uncorrelated": GLDConst(sigma=2**0.5 * XI / LR),
    }[label]


# %%
# A unit
# ------


@lru_cache
def ends_of_all(label, seeds, n_iter, quench, loss):
    """Return Tr H of each seed along the noise, and at the loss."""
    X, y, _ = stacked_problems(seeds)
    risk = SquaresRisk(X, y)
    run = simulate(
        risk,
        {label: make_law(label, risk.n_examples)},
        torch.ones_like(X[:, 0]),
        lr=LR,
        n_iter=n_iter,
        n_chains=len(seeds),
        record_every=n_iter // 20,
    )[label]
    end, _ = descend_to_loss(risk, run.theta, loss, lr=LR, max_iter=quench)
    # Gradient descent is below that loss before: so far down H depends on L no more.
    reached = risk.value(end) <= loss
    along = torch.stack([trace(risk, v) for v in run.trajectory])
    at_loss = torch.where(reached, trace(risk, end), torch.nan)
    return along.T.tolist(), at_loss.tolist()


def trace(risk, v):
    return risk.hessian(v).diagonal(dim1=-2, dim2=-1).sum(-1)


def run_unit(label, seed, settings):
    """Return a seed's part of the simulation of all seeds."""
    settings = settings | {"seeds": tuple(settings["seeds"])}
    along, at_loss = ends_of_all(label, **settings)
    place = settings["seeds"].index(seed)
    return {"Tr H along the noise": along[place], "Tr H at the loss": at_loss[place]}


# %%
# The numbers that are compared, and the picture
# ----------------------------------------------


def outcomes(units):
    """Return log Tr H at the loss; NaN where it was not reached."""
    found = {label: unit["Tr H at the loss"] for label, unit in units.items()}
    return {label: float(np.log(np.array(x, float))) for label, x in found.items()}


def draw(axes, units, outcomes):
    for place, label in enumerate(LABELS):
        ends = np.exp(np.array(outcomes[label], dtype=float))
        spread = np.linspace(-0.15, 0.15, len(ends))
        axes.plot(place + spread, ends, f"C{place}o", alpha=0.7)
    axes.set(
        xlim=(-0.5, len(LABELS) - 0.5),
        xticks=range(len(LABELS)),
        ylabel="Tr H at L ≤ 1e-5",
        yscale="log",
        yticks=(50, 100, 200, 500, 1000),
        yticklabels=(50, 100, 200, 500, 1000),
        title="A point is a seed",
    )
    axes.minorticks_off()
    axes.set_xticklabels([label.replace(" ", "\n") for label in LABELS])


TRIAL = Trial(CLAIM, LABELS, run_unit, outcomes, draw, FULL, SHORT)


# %%
# On a network
# ------------
# The same inequalities.

NETWORK = {"n_train": 100, "lr": 0.5, "n_iter": 6000, "quench": 60_000, "loss": 1e-4}
NOISE = {
    "gradient descent": "gd",
    "label noise": LabelNoise(sigma=0.3 * NETWORK["n_train"] ** 0.5),
    "anticorrelated": AntiPGD(sigma=0.005, match="none"),
    "uncorrelated": GLDConst(sigma=2**0.5 * 0.005 / NETWORK["lr"]),
}


def make_network():
    return nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))


def trace_of_network(risk, theta):
    return float(hessian_trace(risk, theta, rng=0).value)


def run_network(label, seed, settings):
    """Return Tr H of a network along the noise, and at the loss."""
    X, y = digits()
    chosen = np.random.RandomState(seed).permutation(len(X))[: settings["n_train"]]
    model = NoisyDiffusionRegressor(
        make_network,
        method=NOISE[label],
        lr=settings["lr"],
        max_iter=settings["n_iter"],
        record_every=settings["n_iter"] // 20,
        dtype="float64",
        random_state=seed,
        on_divergence="stop",
        metrics={"trace": trace_of_network},
    ).fit(X[chosen], np.eye(10)[y[chosen]])
    risk, loss = model.risk_, settings["loss"]
    end, reached = descend_to_loss(
        *(risk, torch.as_tensor(model.params_), loss),
        lr=settings["lr"],
        max_iter=settings["quench"],
    )
    at_loss = trace_of_network(risk, end) if bool(reached) else np.nan
    return {
        "Tr H along the noise": model.history_["trace"].tolist(),
        "Tr H at the loss": at_loss,
    }


def draw_network(axes, units, outcomes):
    draw(axes, units, outcomes)
    axes.set(ylabel="Tr H at L ≤ 1e-4", yticks=(30, 40, 50), yticklabels=(30, 40, 50))
    axes.set_ylim(25, 65)


SECOND = Trial(
    replace(
        CLAIM,
        title="Which noise walks to flatter points of zero loss of a network?",
        seeds=SECOND_SEEDS,
        protocol="100 digits, squared error, tanh 64-20-10 with PyTorch's "
        "initialisation, float64. 6000 iterations at η = 0.5, in which the noise acts "
        "from the first; then gradient descent goes on to L ≤ 1e-4, and log Tr H is "
        "compared there. Label noise is Gaussian, with the covariance of the labels of "
        "one example at a time moved by 0.3 z; ξ of the anticorrelated noise has the "
        "standard deviation 0.005 in each parameter, and the uncorrelated noise the "
        "variance of its steps. Sizes were chosen on seeds 0 and 1 such that all get "
        "to that loss. A seed draws images, initialisation and noise.",
        would_change="Another width, η or size of the noise.",
    ),
    LABELS,
    run_network,
    outcomes,
    draw_network,
    NETWORK,
    NETWORK | {"n_iter": 60, "quench": 500, "loss": 0.05},
)

if __name__ == "__main__":
    main(TRIAL, SECOND)
