"""Eigenpairs of H against ARPACK and LAPACK, as SciPy wraps them."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh
from torch import nn

from flatmin.curvature import HessianOperator, hessian_eigenpairs
from flatmin.risk import EmpiricalRisk

from .. import oracles

pytestmark = pytest.mark.peers

K = 4


@pytest.fixture(scope="module")
def risk():
    """Too many parameters for flatmin to form the matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        X, y = torch.randn(30, 8, dtype=torch.float64), torch.randint(0, 3, (30,))
    return EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=7), module, X, y


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_eigenpairs(risk, which):
    risk, module, X, y = risk
    theta = risk.params()
    ours = hessian_eigenpairs(
        risk, theta, K, which=which, tol=1e-10, rng=torch.Generator().manual_seed(0)
    )
    assert 0 < ours.n_matvecs < risk.n_params
    H = oracles.dense(module, oracles.cross_entropy, X, y, theta).hessian.numpy()
    values, vectors = eigh(H)
    key = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    wanted = np.argsort(key)[:K]
    np.testing.assert_allclose(ours.eigenvalues, values[wanted], rtol=0, atol=1e-9)
    cosines = np.abs((vectors[:, wanted] * ours.eigenvectors.numpy()).sum(0))
    np.testing.assert_allclose(cosines, 1, rtol=0, atol=1e-8)

    operator = HessianOperator(risk, theta).to_scipy()
    theirs = eigsh(operator, K, which=which, tol=1e-12, return_eigenvectors=False)
    np.testing.assert_allclose(
        np.sort(theirs), np.sort(values[wanted]), rtol=0, atol=1e-9
    )
