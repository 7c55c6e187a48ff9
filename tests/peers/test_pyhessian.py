"""H against PyHessian, which has no other matrix."""

import pytest
import torch

from flatmin.curvature import hessian_eigenpairs
from flatmin.risk import EmpiricalRisk

from ._networks import (
    NETWORKS,
    flat,
    hand,
    import_peer,
    judge,
    matrix,
    oracle,
    plain_kernels,
    prepared_risk,
    split,
)

peer = import_peer("pyhessian")
utils = import_peer("pyhessian.utils")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True"),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_hessian_of_one_batch(name):
    handed = hand(name)
    with plain_kernels():
        found = peer.hessian(
            handed.module, handed.criterion, data=(handed.X, handed.y), cuda=False
        )

        def product(v):
            parts = split(v, found.params)
            return flat(utils.hessian_vector_product(found.gradsH, found.params, parts))

        theirs = matrix(product, name)
    ours = matrix(prepared_risk(name)[1].hvp, name)
    judge(ours, theirs, oracle(name).hessian)


@pytest.mark.parametrize("name", NETWORKS)
def test_hessian_of_two_batches(name):
    handed = hand(name)
    with plain_kernels():
        found = peer.hessian(
            handed.module, handed.criterion, dataloader=handed.batches(5), cuda=False
        )

        def product(v):
            return flat(found.dataloader_hv_product(split(v, found.params))[1])

        theirs = matrix(product, name)
    ours = matrix(prepared_risk(name)[1].hvp, name)
    judge(ours, theirs, oracle(name).hessian)


def test_its_eigenvectors_are_too_short():
    """It divides by ‖Hv‖ + 1e-6: where λ₁ = 1e-6, by twice what it should."""
    X = torch.tensor([[1e-3], [0.0]], dtype=torch.float64)
    y = torch.zeros(2, 1, dtype=torch.float64)
    module = torch.nn.Linear(1, 1, bias=False).double()
    risk = EmpiricalRisk(module, "squared_error", X, y)
    ours = hessian_eigenpairs(risk, risk.params(), 1)
    with torch.random.fork_rng():
        found = peer.hessian(module, torch.nn.MSELoss(), data=(X, y), cuda=False)
        values, vectors = found.eigenvalues()
    assert float(ours.eigenvalues) == pytest.approx(1e-6)
    assert float(ours.eigenvectors.norm()) == pytest.approx(1)
    assert values[0] == pytest.approx(1e-6, rel=1e-5)
    assert float(vectors[0][0].norm()) == pytest.approx(0.5, rel=1e-5)
