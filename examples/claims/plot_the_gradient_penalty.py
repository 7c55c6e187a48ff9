"""
Is SGD's gain a penalty on the gradient, of a weight that is known?
===================================================================

Backward error analysis says that SGD's path, at a small rate, is that of gradient
descent on L + (η/4) E‖g_B‖², with the norms of minibatches. So gradient descent with
this penalty, and no noise at all, should test as SGD does. The same weight on ‖g₀‖² is
what gradient descent has already.

The rules are those of ``plot_what_holds_the_edge.py``: the inequalities were written
before their numbers, and an interval over seeds decides.
"""

# %%
from dataclasses import replace

import numpy as np
import torch
from _claim import Claim, Inequality, Source
from _descent import descend_to_loss
from _problems import SECOND_SEEDS, digits_of_seed, fashion_network, fashion_of_seed
from _trial import Trial, main

from flatmin import EmpiricalRisk
from flatmin.dynamics import simulate
from flatmin.modules import MLP
from flatmin.noise import SGD, GradientPenalty

CLAIM = Claim(
    title="The gradient penalty with its predicted weight",
    says="SGD's implicit regularisation is a penalty on the squared norms of minibatch "
    "gradients, whose weight grows with η/m; with an explicit penalty of this kind, "
    "full-batch training needs no noise.",
    sources=(
        Source("S. Smith, B. Dherin, D. Barrett, S. De, arXiv 2101.12176", "abstract"),
        Source("J. Geiping et al., arXiv 2109.14119", "abstract"),
        Source("D. Barrett, B. Dherin, arXiv 2009.11162", "abstract"),
    ),
    inequalities=(
        Inequality("premise: SGD tests better than GD", "sgd", "gd", high=0.0),
        Inequality("the penalty tests as SGD", "penalty", "sgd", -0.005, 0.005),
        Inequality("the penalty tests better than GD", "penalty", "gd", high=0.0),
        Inequality("it closes half of the gap", "penalty", "half-way", high=0.0),
        Inequality("on ‖g₀‖² it changes nothing", "on g₀", "gd", -0.005, 0.005),
    ),
    seeds=tuple(range(20, 28)),
    tuned_on=tuple(range(18)),
    protocol="300 digits, 45 of them with wrong labels, ReLU 64-16-10, cross-entropy, "
    "float32, η = 0.1, m = 20, weight η/4 = 0.025. 2000 iterations, then gradient "
    "descent to a training loss of 0.03, at which the errors on 1497 other digits are "
    "compared. A seed draws examples, wrong labels, initialisation and batches.",
    objection="GD at its own best η is the baseline to beat, and is not here. The "
    "descent to one loss has no penalty. The analysis is for small η and batches drawn "
    "in passes; here they are drawn with replacement.",
    would_change="Another η or m; larger networks; the interval of another number of "
    "test digits, of which half a point is seven.",
)
LR, M = 0.1, 20
LAWS = {
    "gd": "gd",
    "sgd": SGD(batch_size=M),
    "penalty": GradientPenalty(weight=LR / 4, norm="batches", batch_size=M),
    "on g₀": GradientPenalty(weight=LR / 4),
}
FULL = {"n_train": 300, "n_iter": 2000, "loss": 0.03, "n_descent": 10_000}
SHORT = {"n_train": 100, "n_iter": 20, "loss": 1.0, "n_descent": 200}


# %%
# A unit
# ------


def digits(seed, n_train):
    X, y, X_test, y_test = digits_of_seed(seed, n_train)
    return (X - 0.3) / 0.37, y, (X_test - 0.3) / 0.37, y_test


# Images and labels as a seed draws them, and the network for them.
DATA = {
    "digits": (digits, lambda: MLP(64, 10, hidden_layer_sizes=16)),
    "fashion_mnist": (fashion_of_seed, lambda: fashion_network(32)),
}


def run_unit(label, seed, settings):
    """Return losses and test errors after the law, and at the one loss."""
    load, make_network = DATA[settings.get("data", "digits")]
    X, y, X_test, y_test = load(seed, settings["n_train"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make_network()
    risk = EmpiricalRisk(network, "cross_entropy", X, y, dtype="float32")
    others = EmpiricalRisk(network, "cross_entropy", X_test, y_test, dtype="float32")

    def told(theta):
        wrong = others.outputs(theta).argmax(1).numpy() != y_test
        return {"loss": float(risk.value(theta)), "error": float(wrong.mean())}

    run = simulate(
        risk,
        {label: LAWS[label]},
        risk.params(),
        lr=LR,
        n_iter=settings["n_iter"],
        n_chains=1,
        rng=seed,
    )
    theta = run[label].theta[0]
    to = {"lr": LR, "max_iter": settings["n_descent"]}
    below, reached = descend_to_loss(risk, theta, settings["loss"], **to)
    at_loss = told(below)
    if not reached:  # it began below, or the bound on the steps came first
        at_loss["error"] = np.nan
    return {"after the law": told(theta), "at one loss": at_loss}


# %%
# The numbers that are compared, and the picture
# ----------------------------------------------


def outcomes(units):
    errors = {label: unit["at one loss"]["error"] for label, unit in units.items()}
    found = {label: float(np.array(x, dtype=float)) for label, x in errors.items()}
    return found | {"half-way": (found["gd"] + found["sgd"]) / 2}


def draw(axes, units, outcomes):
    errors = 100 * np.array([outcomes[label] for label in LAWS])
    axes.plot(errors, color="0.8", lw=1)
    axes.plot(errors, "o", color="tab:blue", markersize=4)
    axes.plot(errors.mean(1), "k_", markersize=30)
    words = ["GD", "SGD", "GD with\n(η/4) E‖g_B‖²", "GD with\n(η/4) ‖g₀‖²"]
    axes.set_xticks(range(len(LAWS)), words)
    axes.set(
        xlim=(-0.5, len(LAWS) - 0.5),
        ylabel="test error at one training loss, %",
        title="A line a seed; bars are means",
    )


FINDINGS = (
    "At one training loss SGD errs on 22.9 % of other digits, gradient descent on "
    "25.2 %. The penalty on minibatch norms with the predicted weight comes to 24.2 "
    "%: 1.0 points below gradient descent (0.4 to 1.7), which is some half of the "
    "gap, and the interval does not say whether more or less. The same weight on "
    "‖g₀‖² moves the error by 0.2 points (-0.2 to 0.6).",
    "Here SGD errs on 33.8 % of the test images and gradient descent on 34.4 %: 0.7 "
    "points (0.3 to 1.0). The penalty on minibatch norms comes to 33.9 %, 0.5 points "
    "below gradient descent (0.1 to 1.0); whether it closes half of the gap, or all of "
    "it, is not told. The same weight on ‖g₀‖² gains 0.3 points (0.1 to 0.4), less "
    "than the half point that counts.",
)
TRIAL = Trial(CLAIM, tuple(LAWS), run_unit, outcomes, draw, FULL, SHORT)


# %%
# On a second data set and network
# --------------------------------
# The same inequalities. Seeds 0 and 1 were between 0.0095 and 0.0146 after 2000
# iterations: the loss at which errors are compared lies below.

SECOND = Trial(
    replace(
        CLAIM,
        title="The gradient penalty with its predicted weight, on Fashion-MNIST",
        seeds=SECOND_SEEDS,
        protocol="As before, with 300 images of Fashion-MNIST of 14 x 14 pixels, 45 of "
        "them with wrong labels, tanh 196-32-32-10, a training loss of 0.005, and the "
        "errors on 10,000 test images.",
        would_change="Another η or m; larger networks.",
    ),
    tuple(LAWS),
    run_unit,
    outcomes,
    draw,
    FULL | {"data": "fashion_mnist", "loss": 0.005},
    SHORT | {"data": "fashion_mnist"},
)

if __name__ == "__main__":
    main(TRIAL, SECOND)
