"""What a refresh keeps of the state before, and what it draws anew."""

import pytest
import torch

from flatmin.linalg import DiagonalOperator
from flatmin.noise import GLDDiagonal, GLDDynamic, make_noise_law

from ._problems import generator, problem

SETTINGS = {"batch_size": 3, "n_components": 3, "tol": 1e-10}


@pytest.mark.parametrize("name", ["mlp", "cnn", "quadratic_chains"])
def test_random_directions_are_drawn_once_a_run(name):
    case, rng = problem(name), generator()
    law = make_noise_law("gld_random_subspace", **SETTINGS)
    first = law.refresh(case.risk, case.theta, rng)
    U = first.eigenvectors
    eye = torch.eye(3, dtype=U.dtype)
    torch.testing.assert_close(U.mT @ U, eye.expand(*U.shape[:-2], 3, 3))

    later = law.refresh(case.risk, case.theta + 0.1, rng, first)
    assert torch.equal(later.eigenvectors, U)
    fresh = law.refresh(case.risk, case.theta + 0.1, rng)
    assert not torch.equal(fresh.eigenvectors, U)
    torch.testing.assert_close(later.eigenvalues, fresh.eigenvalues)


def test_the_spectrum_of_a_random_subspace_is_renewed():
    case, rng = problem("mlp"), generator()
    law = make_noise_law("gld_random_subspace", **SETTINGS)
    state = law.refresh(case.risk, case.theta, rng)
    later = law.refresh(case.risk, case.theta + 0.1, rng, state)
    assert not torch.allclose(later.eigenvalues, state.eigenvalues, rtol=1e-3)


def test_random_directions_do_not_depend_on_the_solver():
    # The Hessian of 43 parameters is dense, that of 71 goes through Lanczos, which
    # draws a start vector; a tolerance decides how often it restarts.
    case = problem("cnn")
    frames = [
        make_noise_law("gld_random_subspace", n_components=3, tol=tol)
        .refresh(case.risk, case.theta, generator())
        .eigenvectors
        for tol in (1e-1, 1e-10)
    ]
    assert torch.equal(*frames)


@pytest.mark.parametrize(
    ("source", "moves"), [("minibatches", True), ("examples", False)]
)
def test_leading_draws_a_new_partition_at_each_refresh(source, moves):
    case, rng = problem("mlp"), generator()
    law = make_noise_law("gld_leading", batch_size=3, n_components=3, source=source)
    state = law.refresh(case.risk, case.theta, rng)
    again = law.refresh(case.risk, case.theta, rng, state)
    assert torch.equal(state.to_dense(), again.to_dense()) != moves


def test_const_follows_its_settings():
    case, rng = problem("quadratic"), generator()
    law = make_noise_law("gld_const", sigma=1.0)
    state = law.refresh(case.risk, case.theta, rng)
    law.set_params(sigma=2.0)
    state = law.refresh(case.risk, case.theta, rng, state)
    assert law.trace(case.risk, case.theta, state) == 4 * case.risk.n_params


@pytest.mark.parametrize("method", ["gld_hessian", "gld_diagonal", "gld_dynamic"])
def test_noise_is_that_of_the_last_refresh(method):
    case, rng = problem("regression_chains"), generator()
    law = make_noise_law(method)
    state = law.refresh(case.risk, case.theta, rng)
    there, here = (
        law.covariance(case.risk, theta, state).to_dense()
        for theta in (case.theta + 1, case.theta)
    )
    assert torch.equal(there, here)


def test_gauss_newton_noise_has_the_shape_of_here_and_the_size_of_the_refresh():
    case, rng = problem("mlp"), generator()
    law = make_noise_law("gld_ggn")
    state = law.refresh(case.risk, case.theta, rng)
    there = law.covariance(case.risk, case.theta + 1, state).to_dense()
    here = law.covariance(case.risk, case.theta, state).to_dense()
    assert not torch.allclose(there, here)
    torch.testing.assert_close(here, state.scale**2 * case.point.gauss_newton)


class _NoNoise:
    def refresh(self, risk, theta, rng, previous=None):
        return DiagonalOperator(torch.zeros_like(theta))


class _Silent(_NoNoise, GLDDiagonal):
    pass


class _Twice(GLDDynamic):
    def noisy_gradient(self, risk, theta, state, rng):
        loss, gradient = super().noisy_gradient(risk, theta, state, rng)
        return loss, 2 * gradient


@pytest.mark.parametrize("law", [_Silent(), _Twice()])
def test_a_subclass_has_its_own_way_in_one_call_too(law):
    case = problem("mlp")
    state = law.refresh(case.risk, case.theta, generator())
    apart = law.noisy_gradient(case.risk, case.theta, state, generator())
    in_one = law.refreshed_gradient(case.risk, case.theta, generator())
    torch.testing.assert_close(in_one[2], apart[1])
