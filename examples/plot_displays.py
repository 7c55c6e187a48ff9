"""
One picture of every Display
============================

One picture of every Display, of the paper's network on Fashion-MNIST.

    python examples/plot_displays.py [--full] [--theta FILE.npy] [--output DIR]

``--full`` trains the LeNet of 11,330 parameters by gradient descent for 3000 iterations
on 1200 images, as the paper does; without it everything is small, for a first
look. ``--theta`` starts from parameters that an earlier run has stored.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    expected_sharpness,
)
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.modules import LeNet
from flatmin.plotting import (
    AlignmentDisplay,
    LandscapeDisplay,
    SharpnessDisplay,
    SpectrumDisplay,
    TrajectoryDisplay,
)

FULL = {"clean": 1000, "corrupt": 200, "warmup": 3000, "noise": 300, "k": 20}
FULL |= {"points": 21, "draws": 20, "steps": 80}
SHORT = {"clean": 100, "corrupt": 20, "warmup": 40, "noise": 20, "k": 3}
SHORT |= {"points": 5, "draws": 3, "steps": 10}
METHODS = ("gd", "sgd", "gld_dynamic")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the paper's network")
    parser.add_argument("--theta", type=Path, default=None, help="flat θ, .npy")
    parser.add_argument(
        "--output", type=Path, default=Path("displays-output"), metavar="DIR"
    )
    return parser.parse_args(arguments)


def sharpness(risk, theta):
    return expected_sharpness(risk, theta, n_draws=20)


def descend(sizes, X, y, theta):
    """Return θ after gradient descent at 0.1, unless it is there."""
    if theta is None:
        settings = {"lr": 0.1, "max_iter": sizes["warmup"], "random_state": 0}
        clf = NoisyDiffusionClassifier(LeNet, method="gd", **settings).fit(X, y)
        return clf.params_
    return np.load(theta)


def runs(sizes, X, y, theta):
    """Return a run of each method from θ: the fitted classifiers."""
    settings = {"lr": 0.03, "max_iter": sizes["noise"], "params_init": theta}
    settings |= {"record_every": max(1, sizes["noise"] // 10), "random_state": 0}
    settings |= {"metrics": {"sharpness": sharpness}}
    return {
        name: NoisyDiffusionClassifier(LeNet, method=name, **settings).fit(X, y)
        for name in METHODS
    }


def alignments(sizes, X, y, theta):
    """Return iterations of SGD from θ, and the alignment at each."""
    third = sizes["noise"] // 3
    clf = NoisyDiffusionClassifier(
        LeNet, lr=0.03, max_iter=0, params_init=theta, warm_start=True, random_state=0
    )
    analyzer = NoiseCovarianceAnalyzer(clf, n_components=sizes["k"], random_state=0)
    tables = []
    for _ in range(4):
        clf.fit(X, y)
        tables.append(analyzer.alignment(max_matvecs=sizes["steps"]))
        clf.set_params(max_iter=third)
    return [0, third, 2 * third, 3 * third], tables


def draw(sizes, X, y, theta):
    """Return the five displays by name."""
    fitted = runs(sizes, X, y, theta)
    at_theta = NoisyDiffusionClassifier(
        LeNet, method="gd", max_iter=0, params_init=theta, random_state=0
    ).fit(X, y)
    iterations, tables = alignments(sizes, X, y, theta)
    density = CurvatureAnalyzer(at_theta, random_state=0).density(
        n_probes=2, n_steps=sizes["steps"]
    )
    history = pd.concat(
        [clf.history_.assign(method=name, seed=0) for name, clf in fitted.items()]
    )
    return {
        "spectrum": SpectrumDisplay.from_results(tables[0], density).plot(),
        "alignment": AlignmentDisplay.from_results(tables[0]).plot(),
        "alignment of a run": AlignmentDisplay.from_results(
            tables, iterations=iterations
        ).plot(),
        "trajectory": TrajectoryDisplay.from_results(history).plot(),
        "sharpness": SharpnessDisplay.from_estimator(
            fitted, n_draws=sizes["draws"], second_order=False
        ),
        "landscape": LandscapeDisplay.from_estimator(
            at_theta, n_points=sizes["points"], random_state=0
        ),
        "solutions": LandscapeDisplay.from_solutions(
            at_theta,
            np.stack([clf.params_ for clf in fitted.values()]),
            n_points=sizes["points"],
        ),
    }


def main(arguments=None):
    arguments = parse_arguments(arguments)
    sizes = FULL if arguments.full else SHORT
    X, y = load_noisy_fashion_mnist(
        sizes["clean"], sizes["corrupt"], random_state=0, return_X_y=True
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    theta = descend(sizes, X, y, arguments.theta)
    for name, display in draw(sizes, X, y, theta).items():
        path = arguments.output / f"{name.replace(' ', '_')}.png"
        display.figure_.savefig(path, dpi=120)
        plt.close(display.figure_)
        print(path)


if __name__ == "__main__":
    main()
