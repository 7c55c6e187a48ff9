"""Eigenpairs of risks by searches that hold few vectors, against float64 autograd."""

import numpy as np
import pytest
import torch

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer
from flatmin.curvature import (
    HessianOperator,
    _eigenpairs,
    covariance_eigenpairs,
    hessian_eigenpairs,
)
from flatmin.measures import max_eigenvalue
from flatmin.risk import EmpiricalRisk

N = 30
close = np.testing.assert_allclose


@pytest.fixture(scope="module")
def problem():
    """A small network in float64, its H and its Σ by autograd alone."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 4)
    ).double()
    X, y = torch.randn(N, 6, dtype=torch.float64), torch.randint(0, 4, (N,))
    theta = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def losses(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = zip(shapes, parts, strict=True)
        parameters = {name: part.view(shapes[name]) for name, part in named}
        logits = torch.func.functional_call(net, parameters, (X,))
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    H = torch.autograd.functional.hessian(lambda t: losses(t).mean(), theta)
    G = torch.autograd.functional.jacobian(losses, theta)
    G = G - G.mean(0)
    return net, X, y, theta, H, G.T @ G / N


BOUNDED = {"max_basis": 9, "basis_device": "cpu", "max_matvecs": 900}


@pytest.mark.parametrize("basis_dtype", [None, "float32"])
def test_of_h(problem, basis_dtype):
    net, X, y, theta, H, _ = problem
    right = torch.linalg.eigvalsh(H).flip(0)
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    search = BOUNDED | {"basis_dtype": basis_dtype, "tol": 1e-5, "rng": 0}
    pairs = hessian_eigenpairs(risk, theta, 3, **search)
    close(pairs.eigenvalues, right[:3], rtol=1e-8)
    U = pairs.eigenvectors
    true = torch.linalg.vector_norm(H @ U - pairs.eigenvalues * U, dim=0)
    close(pairs.residuals, true, atol=1e-12)
    many = hessian_eigenpairs(risk, theta.expand(2, -1), 3, **search)
    close(many.eigenvalues, right[:3].expand(2, -1), rtol=1e-8)
    close(max_eigenvalue(risk, theta, **search).value, right[0], rtol=1e-8)
    found = CurvatureAnalyzer(net, loss="cross_entropy", tol=1e-5).fit(X, y)
    search = BOUNDED | {"basis_dtype": basis_dtype}
    close(found.eigen(3, which="SA", **search).eigenvalues, right.flip(0)[:3], 1e-7)


def test_of_sigma(problem, monkeypatch):
    net, X, y, theta, _, covariance = problem
    right = torch.linalg.eigvalsh(covariance).flip(0)
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    found = NoiseCovarianceAnalyzer(net, loss="cross_entropy", tol=1e-5).fit(X, y)
    for limit in (_eigenpairs.GRAM_LIMIT, 0):
        monkeypatch.setattr(_eigenpairs, "GRAM_LIMIT", limit)
        pairs = covariance_eigenpairs(risk, theta, 3, tol=1e-5, rng=0, **BOUNDED)
        close(pairs.eigenvalues, right[:3], rtol=1e-8)
        close(found.eigen(3, **BOUNDED).eigenvalues, right[:3], rtol=1e-8)
    close(found.eigen(3, which="LM", **BOUNDED).eigenvalues, right[:3], rtol=1e-8)


def test_a_search_with_arguments_of_its_own_is_not_kept(problem):
    net, X, y, *_ = problem
    found = CurvatureAnalyzer(
        net, loss="cross_entropy", n_components=2, random_state=0
    ).fit(X, y)
    first = found.eigen(max_basis=8)
    assert found.eigen() is not first
    assert found.eigen() is found.eigen()
    close(found.eigen().eigenvalues, first.eigenvalues, rtol=1e-6)


def test_the_cost_counts_the_vectors_that_are_held(problem):
    net, X, y, *_ = problem
    found = CurvatureAnalyzer(net, loss="cross_entropy").fit(X, y)
    D = sum(p.numel() for p in net.parameters())
    for basis_dtype, one in [(None, 8), ("float32", 4), (torch.bfloat16, 2)]:
        search = {"max_basis": 5, "basis_dtype": basis_dtype, "max_matvecs": 11}
        cost = found.cost("eigen", k=1, **search)
        assert cost.memory == (6 * one + 2 * 8) * D
        assert cost.at_most == 2 * 11 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_basis": 2}, "max_basis must be above k = 2"),
        ({"max_basis": 0}, "max_basis must be an integer of at least 1. Got 0"),
        ({"max_matvecs": 1.5}, "max_matvecs must be an integer of at least 1. Got 1.5"),
        ({"basis_dtype": "int8"}, "basis_dtype must be torch.float64"),
        ({"basis_device": "nowhere"}, "basis_device must be one that PyTorch can use"),
    ],
)
def test_bad_input(problem, options, message):
    net, X, y, theta, *_ = problem
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    for solve in (
        lambda: hessian_eigenpairs(risk, theta, 2, **options),
        lambda: (
            CurvatureAnalyzer(net, loss="cross_entropy").fit(X, y).eigen(2, **options)
        ),
    ):
        with pytest.raises(ValueError, match=message):
            solve()
    if options != {"max_basis": 2}:  # a Gram matrix needs no basis
        with pytest.raises(ValueError, match=message):
            covariance_eigenpairs(risk, theta, 2, **options)
    assert HessianOperator(risk, theta).n_matvecs == 0
