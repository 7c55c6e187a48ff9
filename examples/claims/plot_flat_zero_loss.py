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
from functools import lru_cache

import numpy as np
import torch
from _claim import Claim, Inequality, Source
from _descent import descend_to_loss
from _trial import Trial, main
from plot_sparse_truth import SquaresRisk, stacked_problems

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
    "L = 1e-5, and log Tr H is compared there. Label noise is Gaussian, with the "
    "covariance of one label at a time moved by ±1/2; ξ of the anticorrelated noise "
    "has the standard deviation 0.02 in each parameter, and the uncorrelated noise the "
    "variance of its steps. A seed draws examples, w* and noise.",
    objection="Tr H may fall because L rises: hence one loss for all. With "
    "cross-entropy labels would have to be flipped.",
    would_change="An η or σ at which uncorrelated noise lowers Tr H at that loss.",
)
FINDINGS = (
    "At L = 1e-5 label noise has 0.62 of gradient descent's Tr H (0.61 to 0.64), "
    "anticorrelated noise 0.74 (0.72 to 0.75), in each of eight seeds. Uncorrelated "
    "noise of the same step is above gradient descent on average, but of two kinds: "
    "2.2 to 5.1 times its Tr H in five seeds, and 0.70 to 0.97 times in three.",
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
    end, reached = descend_to_loss(risk, run.theta, loss, lr=LR, max_iter=quench)
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
        ylabel="Tr H at L = 1e-5",
        yscale="log",
        yticks=(50, 100, 200, 500, 1000),
        yticklabels=(50, 100, 200, 500, 1000),
        title="A point is a seed",
    )
    axes.minorticks_off()
    axes.set_xticklabels([label.replace(" ", "\n") for label in LABELS])


TRIAL = Trial(CLAIM, LABELS, run_unit, outcomes, draw, FULL, SHORT)

if __name__ == "__main__":
    main(TRIAL)
