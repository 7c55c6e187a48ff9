"""Kill fits at random moments, and go on; run as a script by test_kills.

Each fit runs in a fork of this process, which serves all cases: importing PyTorch takes
longer than twenty kills.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

from flatmin import NoisyDiffusionClassifier
from flatmin.noise import SGD


def problem():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    return 2.5 * np.eye(3, 4)[y] + rng.normal(size=(60, 4)), y


def variants(name):
    """Return the settings of a case: a method, or one with something besides."""
    method, _, extra = name.partition("+")
    if extra == "epoch":
        return {"method": SGD(sampling="epoch")}
    if extra == "batches":
        return {"method": method, "gradient_batch_size": 20}
    if extra == "adam":
        return {"method": method, "optimizer": "adam", "lr": 0.01}
    if method == "svag":  # which takes plain steps only
        return {"method": method}
    momentum = {"optimizer_params": {"momentum": 0.9}}
    return {"method": method, **momentum}


def fit(name, folder):
    settings = {
        "module_params": {"hidden_layer_sizes": 8},
        "lr": 0.03,
        "warmup": {
            "max_iter": 17,
            "method": "sgd",
            "optimizer": "rmsprop",
            "lr": 0.003,
        },
        "max_iter": 33,
        "record_every": 10,
        "random_state": 0,
        "checkpoint_dir": None if folder is None else {"path": folder, "every": 3},
    }
    return NoisyDiffusionClassifier(**settings | variants(name)).fit(*problem())


def in_fork(name, folder, delay):
    """Return θ and the losses that a fit ends with, or None if it was killed."""
    with tempfile.TemporaryDirectory() as out:
        end = Path(out) / "end.npz"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                warnings.simplefilter("error")
                model = fit(name, folder)
                losses = model.history_["loss"].to_numpy()
                np.savez(end, theta=model.params_, losses=losses)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return None
        if status != 0:
            raise RuntimeError(f"A fit of {name} failed.")
        with np.load(end) as found:
            return found["theta"], found["losses"]


def count(name, n_kills, rng):
    """Return how many runs were killed, and how many of the ends were other ones."""
    model = fit(name, None)
    expected = model.params_, model.history_["loss"].to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fit(name, folder)
        seconds = time.perf_counter() - began
    kills = ends = wrong = 0
    while kills < n_kills or not ends:
        folder = tempfile.mkdtemp()
        try:
            end = None
            while end is None:
                delay = rng.uniform(0, 0.7 * seconds) if kills < n_kills else None
                end = in_fork(name, folder, delay)
                kills += end is None
            ends += 1
            wrong += not all(map(np.array_equal, end, expected))
        finally:
            shutil.rmtree(folder)
    return {"kills": kills, "ends": ends, "wrong": wrong}


def main():
    """Answer a line of case, number of kills and seed by a line of what came out."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        name, n_kills, seed = json.loads(line)
        try:
            found = count(name, n_kills, random.Random(seed))
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
