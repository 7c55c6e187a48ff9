"""Every measure where the risk lives on a GPU."""

import pytest
import torch

from flatmin.measures import Gaussianity
from flatmin.risk import EmpiricalRisk

from ..curvature import _problems as networks
from .test_metrics import METRICS


def summary(result):
    """Return a number and its error; of drawn batches, what is not drawn."""
    if isinstance(result, Gaussianity):
        return float(result.excess_kurtosis.sum()), 0.0
    return float(result), float(getattr(result, "stderr", 0.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", METRICS)
def test_as_on_a_cpu(name):
    module, X, y, theta = networks.network()
    found, expected = (
        summary(
            METRICS[name](
                EmpiricalRisk(module, "cross_entropy", X, y, device=device),
                theta.to(device),
            )
        )
        for device in ("cuda", "cpu")
    )
    drawn = 5 * (found[1] ** 2 + expected[1] ** 2) ** 0.5
    assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=drawn)
