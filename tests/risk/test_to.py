"""The same risk on another device or in another precision."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flatmin.risk import EmpiricalRisk

N = 11
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
y = torch.arange(N) % 2
WEIGHTS = torch.linspace(0, 1, N)


class Weighted(nn.CrossEntropyLoss):
    """A loss with tensors of its own, and no name."""

    def __init__(self):
        super().__init__(weight=torch.tensor([1.0, 3.0]))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("loss", ["cross_entropy", Weighted])
@pytest.mark.parametrize("data", [(X, y), (TensorDataset(X, y), None)])
def test_it_is_the_risk_of_a_double_network(net, loss, data):
    options = {"sample_weight": WEIGHTS, "chunk_size": 4}
    risk = EmpiricalRisk(net, loss, *data, **options)
    theta = torch.linspace(-1, 1, risk.n_params)
    risk.set_params(theta)
    before = risk.gradient(theta)
    double = risk.to(dtype="float64")
    assert double.dtype == torch.float64
    assert double.chunk_size == 4
    assert torch.equal(double.params(), theta.double())
    # The weights are normalised in float32, before.
    wanted = EmpiricalRisk(
        copy.deepcopy(net).double(), loss, X.double(), y, **options
    ).gradient(theta.double())
    torch.testing.assert_close(
        double.gradient(double.params()), wanted, rtol=1e-6, atol=0
    )
    assert torch.equal(risk.gradient(theta), before)


@pytest.mark.parametrize("data", [(X, y), (TensorDataset(X, y), None)])
@pytest.mark.parametrize("chosen", [[1, 2, 3], [0, 0]])
def test_a_subset_keeps_its_weights(net, data, chosen):
    """Whose mean is not one, and may be 0."""
    risk = EmpiricalRisk(net, "cross_entropy", *data, sample_weight=WEIGHTS)
    theta, indices = risk.params(), torch.tensor(chosen)
    part = risk.subset(indices)
    torch.testing.assert_close(
        part.to(dtype="float64").value(theta.double()).float(), part.value(theta)
    )
    of_double = risk.to(dtype="float64").subset(indices)
    torch.testing.assert_close(
        part.to(dtype="float64").gradient(theta.double()),
        of_double.gradient(theta.double()),
        rtol=1e-12,
        atol=1e-14,
    )


def test_where_nothing_changes_it_is_itself(net):
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    assert risk.to() is risk
    assert risk.to(device="cpu", dtype="float32") is risk


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_gpu_and_back(net):
    risk = EmpiricalRisk(net, Weighted, X, y)
    there = risk.to(device="cuda", dtype="float64")
    back = there.to(device="cpu")
    theta = back.params()
    torch.testing.assert_close(there.gradient(theta.cuda()).cpu(), back.gradient(theta))
