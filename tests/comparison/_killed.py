"""A comparison that is killed; run as a script by test_checkpoints."""

import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from flatmin import compare_dynamics


def compare(folder):
    """Compare, with the problem of the tests beside this file."""
    path = Path(__file__).with_name("_problems.py")
    spec = importlib.util.spec_from_file_location("problems", path)
    problems = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(problems)
    X, y, X_test, y_test = problems.digits()
    return compare_dynamics(
        ["gd", "gld_hessian"],
        X,
        y,
        estimator=problems.classifier(),
        X_test=X_test,
        y_test=y_test,
        n_seeds=[3, 1],
        quench=20,
        end_metrics={"norm": problems.norm},
        checkpoint_dir=folder,
        checkpoint_every=None if folder is None else 3,
    )


def killed(folder, out, delay):
    """Say whether a comparison in a fork was killed before its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            compare(folder).to_json(out)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and status != 0:
        raise RuntimeError("The comparison failed.")
    return os.WIFSIGNALED(status)


def main():
    """Write the table of an uninterrupted comparison, and that of a killed one."""
    whole, resumed, n_kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    compare(None)  # what takes long the first time
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        compare(folder)
        seconds = time.perf_counter() - began
    compare(None).to_json(whole)
    with tempfile.TemporaryDirectory() as folder:
        delays = [seconds / (n_kills + 1)] * n_kills + [None]
        print(json.dumps(sum(killed(folder, resumed, delay) for delay in delays)))


if __name__ == "__main__":
    main()
