"""Tr((H + δI)⁻¹Σ) in dense float64."""

import pytest
import torch

from flatmin.measures import tic
from flatmin.risk import QuadraticRisk

from ..curvature import _problems
from ._problems import regression


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_a_network(matrix):
    dense = _problems.oracle()
    M = getattr(dense, matrix)
    damping = 0.1 + max(0.0, -float(torch.linalg.eigvalsh(M)[0]))
    damped = M + damping * torch.eye(len(M), dtype=M.dtype)
    expected = float(torch.linalg.solve(damped, dense.covariance).trace())
    risk, theta = _problems.empirical(chunk_size=5)
    asked = "ggn" if matrix == "gauss_newton" else matrix
    found = tic(risk, theta, damping=damping, matrix=asked)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert (float(found.stderr), found.n_matvecs) == (0, len(M))


def test_a_block():
    risk, theta = _problems.empirical()
    dense, name = _problems.oracle(), risk.layout.names[0]
    rows = risk.layout.indices(name)
    G, S = (m[rows][:, rows] for m in (dense.gauss_newton, dense.covariance))
    damped = G + 0.2 * torch.eye(len(G), dtype=G.dtype)
    expected = float(torch.linalg.solve(damped, S).trace())
    found = tic(risk, theta, damping=0.2, matrix="ggn", select=name)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_formulas():
    risk, theta, H, S = regression()
    damped = H + 0.5 * torch.eye(len(H), dtype=H.dtype)
    expected = float(torch.linalg.solve(damped, S).trace())
    assert float(tic(risk, theta, damping=0.5)) == pytest.approx(expected, rel=1e-10)


def test_an_indefinite_matrix_is_refused():
    risk = QuadraticRisk(torch.diag(torch.tensor([2.0, -1.0])), torch.eye(2))
    with pytest.raises(ValueError, match=r"eigenvalue -1 of H and damping=0.5; use"):
        tic(risk, torch.zeros(2), damping=0.5)
    assert float(tic(risk, torch.zeros(2), damping=3.0)) > 0


def test_too_many_parameters_are_refused_before_any_work():
    risk = QuadraticRisk(torch.eye(5001), torch.zeros(1, 5001))
    with pytest.raises(ValueError, match=r"at most 5000 parameters. Got 5001; name"):
        tic(risk, torch.zeros(5001), damping=1.0)
