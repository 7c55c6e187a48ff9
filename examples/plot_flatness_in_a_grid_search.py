"""
Flatness beside accuracy in a grid search
=========================================

Flatness beside accuracy in a grid search whose warm-up is run once a fold.

A search over the noise of the last iterations, on handwritten digits. Every network is
scored by its accuracy and by its flatness, which is minus its sharpness, on the data
that it was trained on and on those that it was not. All settings share a warm-up by
gradient descent; ``memory`` keeps it, so that each fold runs it once.
"""

import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from flatmin import NoisyDiffusionClassifier, SharpnessScorer

N = 400
WARMUP, N_ITER = 1500, 200
GRID = [
    {"method": ["gd"]},
    {"method": ["sgd"], "batch_size": [5, 20]},
    {"method": ["gld_diagonal", "gld_const"], "batch_size": [5], "noise_scale": [1, 4]},
]
SCORES = [(score, on) for score in ("accuracy", "flatness") for on in ("train", "test")]


def search(X, y, memory=None):
    """Return the fitted search and the seconds it took."""
    estimator = NoisyDiffusionClassifier(
        lr=0.1,
        max_iter=N_ITER,
        record_every=N_ITER,
        warmup={"max_iter": WARMUP},
        memory=memory,
        random_state=0,
    )
    grid = GridSearchCV(
        estimator,
        GRID,
        scoring={"accuracy": "accuracy", "flatness": SharpnessScorer(n_draws=20)},
        refit="accuracy",
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
        n_jobs=2,
        return_train_score=True,
    )
    start = time.perf_counter()
    grid.fit(X, y)
    return grid, time.perf_counter() - start


def make_table(grid):
    """Return the scores as means over folds, one row a setting."""
    results = grid.cv_results_
    columns = {key: results[f"mean_{key[1]}_{key[0]}"] for key in SCORES}
    settings = pd.DataFrame(results["params"]).astype(object).fillna("")
    return pd.DataFrame(columns, index=pd.MultiIndex.from_frame(settings))


def draw(table):
    """Draw accuracy against flatness on data of no fold's training, by law."""
    _, axes = plt.subplots(layout="constrained")
    for law, rows in table.groupby(level="method"):
        axes.plot(rows["flatness", "test"], rows["accuracy", "test"], "o", label=law)
    axes.set(xlabel="flatness", ylabel="accuracy", title="Means over three folds")
    axes.locator_params("x", nbins=5)
    axes.figure.legend(loc="outside right upper")


def main():
    """Search without and with a memory, print both scores, check what has to hold."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:N] / 16, y[:N]
    search(X[:60], y[:60])  # starts the worker processes
    plain, seconds = search(X, y)
    with tempfile.TemporaryDirectory() as folder:
        kept, fewer_seconds = search(X, y, memory=folder)
    table = make_table(kept)
    print(table.to_string(float_format="{:.4g}".format))
    print(f"\nthe most accurate: {kept.best_params_}")
    print(f"{seconds:.1f} s without memory, {fewer_seconds:.1f} s with it")
    draw(table)

    # The memory changes the time and no number.
    pd.testing.assert_frame_equal(table, make_table(plain))
    assert np.isfinite(table).all(axis=None)
    assert kept.best_score_ == table["accuracy", "test"].max() > 0.8
    # Perturbing the weights costs more on digits that they were not fitted to.
    assert (table["flatness", "train"] > table["flatness", "test"]).all()
    # The scorer is the same function outside of the search.
    flatness = kept.scorer_["flatness"](kept.best_estimator_, X, y)
    assert flatness == SharpnessScorer(n_draws=20)(kept.best_estimator_, X, y)


if __name__ == "__main__":
    main()
    plt.show()
