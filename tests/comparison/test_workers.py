"""What travels between processes is plain values, and no process stays behind."""

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from flatmin import compare_dynamics
from flatmin.comparison import _workers
from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._plan import Plan, Source
from flatmin.comparison._unit import run_unit, warm_up

from ._problems import classifier, digits, norm

X, y, X_test, y_test = digits()
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason="needs a CUDA device"
            ),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_no_tensor_crosses_a_border(device):
    estimator = classifier(method="gld_hessian", n_components=2, device=device)
    plan = Plan(
        Source((X, y, X_test, y_test), estimator),
        metrics={"norm": norm},
        end_metrics={"end": norm},
        quench=10,
        quench_loss=0.5,
        quench_loss_iter=100,
        keep_params=True,
    )
    nowhere = UnitFolder(None, None, {})
    start = warm_up(estimator, 0, plan, None, nowhere)
    unit = run_unit(estimator, "gld_hessian", start, plan, nowhere)
    assert unit.record["status"] == "done", unit.record
    assert unit.params.keys() == {"start", "noise", "quench", "quench_loss"}
    for value in (start, unit):
        pickled = pickle.dumps(value)
        assert b"torch" not in pickled
        assert pickle.loads(pickled).__dict__.keys() == value.__dict__.keys()
    # The task itself: a name of the device, and no data on it.
    assert b"torch.storage" not in pickle.dumps((estimator, start, plan))


def test_a_result_can_be_pickled():
    found = compare_dynamics(["gd"], X, y, estimator=classifier(), n_seeds=[0])
    again = pickle.loads(pickle.dumps(found))
    assert_frame_equal(again.table, found.table)
    assert again.protocol == found.protocol


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_workers_on_one_gpu():
    one, two = (
        compare_dynamics(
            ["gd", "sgd", "gld_full"],
            X,
            y,
            estimator=classifier(device="cuda"),
            n_seeds=[0, 1],
            quench=10,
            n_jobs=n_jobs,
        )
        for n_jobs in (1, 2)
    )
    assert len(two.failures) == 0
    assert two.provenance[0]["machine"]["device"] == torch.cuda.get_device_name()
    for column in ("loss", "distance", "noise_norm"):
        np.testing.assert_allclose(one.table[column], two.table[column], rtol=1e-3)


# By the file alone, since importing PyTorch takes seconds.
BEAT = """
import runpy, sys, time
work = runpy.run_path(sys.argv[1])["work"]

def beat(path):
    for _ in range(1000):
        with open(path, "a") as file:
            file.write(".")
        time.sleep(0.02)

for _ in work(beat, [(path,) for path in sys.argv[2:]], 2):
    pass
"""


@pytest.mark.skipif(os.name == "nt", reason="a parent's end goes unnoticed")
def test_workers_end_with_a_caller_that_is_killed(tmp_path):
    files = [tmp_path / name for name in "ab"]
    command = [sys.executable, "-c", BEAT, _workers.__file__, *map(str, files)]
    with subprocess.Popen(command) as caller:
        wait_until(lambda: all(path.exists() for path in files))
        caller.kill()

    def stands_still():
        before = [path.stat().st_size for path in files]
        time.sleep(0.3)
        return before == [path.stat().st_size for path in files]

    wait_until(stands_still)
    # Not because there was no more to do.
    assert all(path.stat().st_size < 1000 for path in files)


def wait_until(condition):
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
