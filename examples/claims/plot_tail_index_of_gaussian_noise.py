"""
Is SGD's noise heavy-tailed? Ask the same of noise that is Gaussian
===================================================================

An estimator of the tail index α says that SGD's noise is far from Gaussian, α = 2. Here
it also meets a twin of that noise: drawn from a normal distribution, with SGD's own
covariance. What it says of the twin is about the shape of the covariance. Tails proper
are of one coordinate, over draws.

The rules are those of ``plot_what_holds_the_edge.py``: the inequalities were written
before their numbers, and an interval over seeds decides.
"""

# %%
from dataclasses import replace

import numpy as np
import torch
from _claim import Claim, Inequality, Source
from _problems import digits_of_seed
from _trial import Trial, main

from flatmin import NoisyDiffusionClassifier, make_noise_law
from flatmin.measures import tail_index
from flatmin.modules import MLP

CLAIM = Claim(
    title="The tail index of noise that is Gaussian",
    says="The gradient noise of SGD in deep networks is far from Gaussian: its tail "
    "index α is well below 2, as of an α-stable law.",
    sources=(
        Source("U. Şimşekli, L. Sagun, M. Gürbüzbalaban, arXiv 1901.06053", "abstract"),
        Source("their released code", "code"),
        Source("objection: Z. Xie et al., arXiv 2212.02083", "abstract"),
    ),
    inequalities=(
        Inequality("released recipe: 2 for a Gaussian", "late twin", "0", 1.9, 2.1),
        Inequality("and without dead coordinates", "late twin, no dead", "0", 1.9, 2.1),
        Inequality("and 2 where sizes are equal", "late isotropic", "0", 1.9, 2.1),
        Inequality(
            "it tells SGD from its Gaussian twin", "late twin", "late sgd", low=0.1
        ),
        Inequality("and early, too", "early twin", "early sgd", low=0.1),
        Inequality(
            "one coordinate: 2 for a Gaussian", "late twin, each", "0", 1.9, 2.1
        ),
        Inequality(
            "one coordinate: SGD's tails are heavy, late", "late sgd, each", high=1.9
        ),
        Inequality(
            "and α-stable: α̂ stays from K₁ = 2 to 128",
            "late sgd, 128",
            "late sgd, 2",
            -0.1,
            0.1,
        ),
    ),
    seeds=tuple(range(20, 28)),
    tuned_on=tuple(range(18)),
    protocol="600 digits, 90 of them with wrong labels, standardised pixels, ReLU "
    "64-24-10, cross-entropy, float64, SGD with η = 0.1 and m = 20; 1024 draws at one "
    "θ, after 100 iterations (early) and 3000 (late, when wrong labels are learnt). "
    "The released recipe takes all coordinates of all draws for one sample and sums "
    "neighbours, K₁ the largest divisor below the root; of one coordinate K₁ is 32. A "
    "dead coordinate has no noise; one coordinate's α̂ is the mean over live ones. A "
    "seed draws examples, labels, initialisation and noise.",
    objection="α-stable laws are limits; what is asked here is only whether the "
    "estimate can see them. Xie et al. say that heavy tails are over coordinates and "
    "not over iterations.",
    would_change="Much larger networks or batches of one, where few examples dominate; "
    "another estimator; K₁ in the thousands.",
)
LR, M = 0.1, 20
MOMENTS = ("early", "late")
LAWS = {"sgd": "sgd", "twin": "gld_full", "diagonal": "gld_diagonal"}
LAWS["isotropic"] = "gld_dynamic"
SUMMANDS = (2, 8, 32, 128)
FULL = {"n_train": 600, "early": 100, "late": 3000, "n_draws": 1024}
SHORT = {"n_train": 100, "early": 20, "late": 100, "n_draws": 256}


# %%
# A unit
# ------


def noise(law, risk, theta, n_draws, rng):
    """Return draws of ε at θ, one a row."""
    state, mean = law.refresh(risk, theta, rng), risk.gradient(theta)
    draws = [law.noisy_gradient(risk, theta, state, rng)[1] for _ in range(n_draws)]
    return torch.stack(draws) - mean


def run_unit(label, seed, settings):
    """Return α̂ of each law at one moment of a training by SGD."""
    X, y, _, _ = digits_of_seed(seed, settings["n_train"])
    if settings.get("standardised", True):
        X = (X - 0.3) / 0.37
    model = NoisyDiffusionClassifier(
        MLP,
        module_params={"n_features": 64, "n_outputs": 10, "hidden_layer_sizes": 24},
        lr=settings.get("lr", LR),
        batch_size=M,
        max_iter=settings[label],
        record_every=settings[label],
        dtype="float64",
        random_state=seed,
    ).fit(X, y)
    risk, theta = model.risk_, torch.as_tensor(model.params_)
    found = {"loss": float(risk.value(theta))}
    for name, method in LAWS.items():
        rng = torch.Generator().manual_seed(seed)
        law = make_noise_law(method, batch_size=M)
        draws = noise(law, risk, theta, settings["n_draws"], rng)
        alive = (draws != 0).any(0)
        found[name] = {
            "pooled": float(tail_index(draws, pooled=True)),
            "no dead": float(tail_index(draws[:, alive], pooled=True)),
            "dead": float((~alive).double().mean()),
            "each": [float(tail_index(draws, K)) for K in SUMMANDS],
        }
    return found


# %%
# The numbers that are compared, and the picture
# ----------------------------------------------


def outcomes(units):
    found = {}
    for moment, unit in units.items():
        for law in LAWS:
            by, each = unit[law], dict(zip(SUMMANDS, unit[law]["each"], strict=True))
            found[f"{moment} {law}"] = by["pooled"]
            found[f"{moment} {law}, no dead"] = by["no dead"]
            found[f"{moment} {law}, each"] = each[32]
            for K in (2, 128):
                found[f"{moment} {law}, {K}"] = each[K]
    return found


def draw(axes, units, outcomes):
    """Draw the late α̂ of every seed, law by law."""
    laws = ("isotropic", "diagonal", "twin", "sgd")
    kinds = [("one coordinate, sums of 2", ", 2", "tab:cyan", "o")]
    kinds += [("one coordinate, sums of 32", ", each", "tab:blue", "o")]
    kinds += [("one coordinate, sums of 128", ", 128", "navy", "o")]
    kinds += [("released recipe: all in one sample", "", "tab:red", "s")]
    for shift, (told, key, color, marker) in enumerate(kinds):
        values = np.array([outcomes[f"late {law}{key}"] for law in laws])
        places = np.arange(len(laws))[:, None] + 0.16 * (shift - 1.5)
        axes.plot(
            np.broadcast_to(places, values.shape).ravel(),
            values.ravel(),
            marker,
            color=color,
            markersize=4,
            label=told,
        )
    axes.axhline(2, color="k", ls=":")
    words = ("isotropic\nGaussian", "independent\nGaussian", "Gaussian with\nSGD's Σ")
    axes.set_xticks(range(len(laws)), [*words, "SGD"])
    axes.set(
        ylim=(0, 3.4),
        ylabel="tail index α̂ (2 is Gaussian)",
        title="Late in training, a point a seed",
    )
    axes.legend(fontsize=8, loc="upper left")


FINDINGS = (
    "Of exactly Gaussian noise with SGD's covariance the released recipe says 1.5 to "
    "2.4, by the seed, and of SGD what it says of that twin, less 0.095 (0.067 to "
    "0.123). It follows the covariance: the two networks at 1.5 have 4 % of dead "
    "coordinates. Coordinate by coordinate the twin has 2.01 and SGD's late noise 1.71 "
    "(1.68 to 1.73), so it is not Gaussian; but that rises by 0.41 (0.37 to 0.45) from "
    "sums of 2 to sums of 128, as under no α-stable law.",
    "With dead coordinates, 17 to 28 % here, the released recipe says 0.58 (0.52 to "
    "0.63) of exactly Gaussian noise, and of SGD nothing else (0.016 less, 0.012 to "
    "0.019). Without the dead ones it says 1.20 (1.16 to 1.23) of the Gaussian. "
    "Coordinate by coordinate the Gaussian has 2.00, SGD 1.59 (1.55 to 1.62), which "
    "rises by 0.47 with the length of the sums. So a small α̂ of this recipe is no sign "
    "of heavy tails.",
)
TRIAL = Trial(CLAIM, MOMENTS, run_unit, outcomes, draw, FULL, SHORT)


# %%
# Where black pixels are 0
# ------------------------

SECOND = Trial(
    replace(
        CLAIM,
        title="The tail index, where black pixels are 0",
        inequalities=tuple(i for i in CLAIM.inequalities if "early" not in i.left),
        seeds=tuple(range(28, 36)),
        protocol="As before, with pixels in [0, 1], so that the weights of a pixel "
        "that is always black are dead; η = 0.3, after 3000 iterations.",
    ),
    MOMENTS[1:],
    run_unit,
    outcomes,
    draw,
    FULL | {"standardised": False, "lr": 0.3},
    SHORT | {"standardised": False, "lr": 0.3},
)

if __name__ == "__main__":
    main(TRIAL, SECOND)
