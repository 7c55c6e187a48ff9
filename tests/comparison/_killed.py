"""Comparisons that are killed; run as a script by test_checkpoints.

Each runs in a fork of this process: importing PyTorch takes longer than a comparison.
"""

import contextlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from joblib import parallel_config

from flatmin import compare_dynamics


def compare(folder, backend="sequential"):
    """Compare, with the problem of the tests beside this file."""
    path = Path(__file__).with_name("_problems.py")
    spec = importlib.util.spec_from_file_location("problems", path)
    problems = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(problems)
    X, y, X_test, y_test = problems.digits()
    with parallel_config(backend):
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
            n_jobs=1 if backend == "sequential" else 2,
            checkpoint_dir=folder,
            checkpoint_every=None if folder is None else 3,
        )


def killed(folder, backend, out, is_time, groups):
    """Say whether a comparison in a fork was killed, when it was time to."""
    child = os.fork()
    if child == 0:
        os.setsid()  # the group of its workers, see clear
        status = 1
        try:
            compare(folder, backend).to_json(out)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    groups.append(child)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if is_time():
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    if not os.WIFSIGNALED(status) and status != 0:
        raise RuntimeError("The comparison failed.")
    return os.WIFSIGNALED(status)


def clear(groups):
    """End the workers of who was killed: some wait for a lock of its for good."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    groups.clear()


def moment(folder, phase, usual):
    """Return what says whether it is time for a kill: in a phase, or at any time."""
    if phase == "anytime":
        end = time.monotonic() + random.uniform(0, usual)
        return lambda: time.monotonic() > end
    return lambda: any(Path(folder).glob(f"*/{phase}/checkpoint-*"))


def main():
    """Write the table of an uninterrupted comparison, and those of killed ones."""
    out, backend, phases, n_rounds = sys.argv[1:]
    torch.set_num_threads(1)
    compare(None).to_json(Path(out) / "whole.json")
    n_kills, usual, groups = 0, 0.0, []
    if "anytime" in phases:
        start = time.monotonic()
        timed = Path(out) / "timed"
        killed(timed, backend, timed.with_suffix(".json"), lambda: False, groups)
        usual = time.monotonic() - start
    for i in range(int(n_rounds)):
        with tempfile.TemporaryDirectory() as folder:
            for phase in [*phases.split(), None]:
                resumed = Path(out) / f"resumed-{i}.json"
                is_time = moment(folder, phase, usual)
                n_kills += killed(folder, backend, resumed, is_time, groups)
            clear(groups)
    print(json.dumps(n_kills))


if __name__ == "__main__":
    main()
