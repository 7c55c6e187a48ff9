"""What travels between processes: plain values, whatever the device."""

import pickle

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from flatmin import compare_dynamics
from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._unit import Plan, run_unit, warm_up

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
    metrics = {"norm": norm}
    plan = Plan((X, y, X_test, y_test), metrics, {"end": norm}, 10, None, 1)
    estimator = classifier(method="gld_hessian", n_components=2, device=device)
    nowhere = UnitFolder(None, None, {})
    start = warm_up(estimator, 0, plan, None, nowhere)
    unit = run_unit(estimator, "gld_hessian", start, plan, nowhere)
    assert unit.record["status"] == "done", unit.record
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
