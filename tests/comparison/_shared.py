"""A comparison that shares its folder; run as a script by test_checkpoints.

Prints the warm-ups and units that this process has run, and not read.
"""

import os
import runpy
import sys
import time
from pathlib import Path

import torch

from flatmin import compare_dynamics
from flatmin.comparison import _unit


def compare(folder):
    """Compare, with units that take long enough to be met by another process."""
    problems = runpy.run_path(Path(__file__).with_name("_problems.py"))
    X, y, *_ = problems["digits"]()
    return compare_dynamics(
        ["gd", "gld_hessian"],
        X,
        y,
        estimator=problems["classifier"](
            max_iter=100, warmup={"max_iter": 100, "lr": 0.3}
        ),
        n_seeds=[3, 1, 4, 2],
        checkpoint_dir=folder,
    )


def describe(function, describe):
    """Return a function that prints what it runs."""

    def run(*arguments):
        print(os.getpid(), describe(*arguments), flush=True)
        return function(*arguments)

    return run


def main():
    """Wait for the other process, and compare."""
    folder, file = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    _unit._run_start = describe(_unit._run_start, lambda task: f"warm-up {task.seed}")
    _unit._run_unit = describe(
        _unit._run_unit, lambda task: f"{task.label} {task.start.seed}"
    )
    file.with_suffix(".ready").touch()
    while len(list(file.parent.glob("*.ready"))) < 2:
        time.sleep(0.01)
    compare(folder).to_json(file)


if __name__ == "__main__":
    main()
