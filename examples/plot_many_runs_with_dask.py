"""
Many runs on a Dask cluster
===========================

A comparison and a grid search on a Dask cluster, here of two processes.

joblib runs on the cluster whatever is called under ``parallel_config(backend="dask")``.
Another cluster than this one, which lives on this machine, is another line in
``make_cluster``: docs/many_machines.md. The numbers are those of one process.
"""

import tempfile

import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from joblib import parallel_config
from pandas.testing import assert_frame_equal
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from flatmin import NoisyDiffusionClassifier, compare_dynamics

N, N_ITER, N_SEEDS = 300, 60, 2


def make_cluster():
    """Two worker processes, of one thread each: a thread runs one unit at a time."""
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")


def compare(X, y, folder=None):
    """Return methods × seeds; with a folder a unit goes on where a worker has died."""
    estimator = NoisyDiffusionClassifier(
        lr=0.1, max_iter=N_ITER, record_every=20, warmup={"max_iter": N_ITER}
    )
    return compare_dynamics(
        ["gd", "sgd", "gld_full"],
        X,
        y,
        estimator=estimator,
        n_seeds=N_SEEDS,
        n_threads=1,
        random_state=0,
        checkpoint_dir=folder,
    )


def search(X, y):
    """Return the scores of a grid of noises."""
    estimator = NoisyDiffusionClassifier(lr=0.1, max_iter=N_ITER, random_state=0)
    grid = GridSearchCV(estimator, {"method": ["gd", "gld_dynamic"]}, cv=2)
    return grid.fit(X, y).cv_results_["mean_test_score"]


def main():
    """Run both on the cluster and in this process, and compare."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:N] / 16, y[:N]
    with make_cluster() as cluster, Client(cluster) as client:
        # Sums depend on the number of threads, in their last digits. A comparison sets
        # it in each worker, a grid search takes what is there.
        threads = set(client.run(torch.get_num_threads).values())
        with (
            parallel_config(backend="dask"),
            tempfile.TemporaryDirectory() as folder,
        ):
            found, scores = compare(X, y, folder), search(X, y)
    print(f"threads of PyTorch in a worker: {threads}")
    print(found.summary("gd", columns=["loss"]).to_string(float_format="{:.4g}".format))

    before = torch.get_num_threads()
    (n_threads,) = threads
    torch.set_num_threads(n_threads)
    try:
        assert_frame_equal(found.table, compare(X, y).table, check_exact=True)
        np.testing.assert_array_equal(scores, search(X, y))
    finally:
        torch.set_num_threads(before)
    print("the same, to the last digit, in one process")


# Worker processes read this file too, and must not start clusters.
if __name__ == "__main__":
    main()
