"""Numbers that cannot work are refused before any pass over the data."""

import re

import pytest
import torch

from flatmin.measures import (
    adaptive_expected_sharpness,
    alignment,
    asam_sharpness,
    batch_sharpness,
    cosines,
    covariance_exponent,
    covariance_exponents,
    curvature_noise_scale,
    edge_of_stability,
    expected_sharpness,
    gradient_noise,
    loss_scaled_alignment,
    max_eigenvalue,
    minibatch_gaussianity,
    negative_mass,
    noise_spectrum,
    non_uniformity,
    non_uniformity_bound,
    overlap,
    random_projection_residual,
    sam_sharpness,
    tic,
    trace_hessian_covariance,
    trace_sharpness,
)

from ._problems import D, randn, regression

RISK, THETA, _, _ = regression()
NAN, INF = float("nan"), float("inf")
POSITIVE = [0, -0.1, NAN, INF, True, "1", None]
NOT_NEGATIVE = [-0.1, NAN, INF, True, "1", None]
COUNT = [0, -3, 2.5, NAN, True, "3", None]

ACCURACY = {"rtol": NOT_NEGATIVE, "max_matvecs": COUNT}
NUMBERS = {
    adaptive_expected_sharpness: {"sigma": POSITIVE, "n_draws": [1, *COUNT]},
    alignment: {"k": COUNT, "tol": POSITIVE, **ACCURACY},
    asam_sharpness: {"rho": POSITIVE, "eta": NOT_NEGATIVE},
    batch_sharpness: {"n_draws": [1, *COUNT], "batch_size": COUNT[:-1]},
    covariance_exponent: ACCURACY,
    covariance_exponents: ACCURACY,
    curvature_noise_scale: ACCURACY,
    edge_of_stability: {"lr": POSITIVE, "tol": POSITIVE},
    expected_sharpness: {"sigma": POSITIVE, "n_draws": [1, *COUNT]},
    loss_scaled_alignment: {"k": COUNT, **ACCURACY},
    max_eigenvalue: {"tol": POSITIVE},
    minibatch_gaussianity: {
        "batch_size": COUNT,
        "k": COUNT,
        "n_batches": COUNT,
    },
    negative_mass: {"n_probes": [1, *COUNT], "n_steps": COUNT},
    noise_spectrum: {"k": COUNT, "tol": POSITIVE, **ACCURACY},
    non_uniformity: {"tol": POSITIVE},
    sam_sharpness: {"rho": POSITIVE},
    tic: {"damping": POSITIVE},
    trace_hessian_covariance: {"k": COUNT, **ACCURACY},
    trace_sharpness: {"sigma": POSITIVE, **ACCURACY},
}
NEEDED = {edge_of_stability: {"lr": 0.1}, minibatch_gaussianity: {"batch_size": 4}}


class Untouched:
    """A risk that nobody may ask anything."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize(
    ("measure", "name"),
    [(measure, name) for measure, names in NUMBERS.items() for name in names],
)
def test_numbers_out_of_range(measure, name):
    for value in NUMBERS[measure][name]:
        settings = NEEDED.get(measure, {}) | {name: value}
        sentence = f"{name} must be an? .*Got {re.escape(repr(value))}"
        with pytest.raises(ValueError, match=sentence):
            measure(Untouched(), THETA, **settings)


def _noise():
    return gradient_noise(RISK, THETA)


@pytest.mark.parametrize(
    ("call", "valid", "bad"),
    [
        (
            lambda **settings: non_uniformity_bound(**settings),
            {"lr": 0.1, "batch_size": 4, "n_examples": 100},
            {"lr": POSITIVE, "batch_size": COUNT, "n_examples": COUNT},
        ),
        (
            lambda **settings: random_projection_residual(**settings),
            {"k": 2, "n_params": 5},
            {"k": COUNT, "n_params": COUNT},
        ),
        (
            lambda **settings: _noise().diffusion_norm(**settings),
            {"lr": 0.1, "batch_size": 4},
            {"lr": POSITIVE, "batch_size": POSITIVE},
        ),
        (
            lambda **settings: loss_scaled_alignment(RISK, THETA).norm_bound(
                **settings
            ),
            {"lr": 0.1, "batch_size": 4},
            {"lr": POSITIVE, "batch_size": POSITIVE},
        ),
    ],
)
def test_numbers_of_results(call, valid, bad):
    assert float(call(**valid)) > 0
    for name, values in bad.items():
        for value in values:
            sentence = f"{name} must be an? .*Got {re.escape(repr(value))}"
            with pytest.raises(ValueError, match=sentence):
                call(**valid | {name: value})


@pytest.mark.parametrize("shape", [(D,), (D, 0), (D + 1, 2), (2, D)])
def test_directions_are_columns(shape):
    with pytest.raises(ValueError, match=rf"shape \({D}, k\).*Got \({shape[0]},"):
        minibatch_gaussianity(RISK, THETA, batch_size=4, directions=randn(*shape))


def test_a_direction_is_made_of_numbers():
    directions = randn(D, 3)
    directions[0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"Got directions \[1\] with .* = \[nan\]"):
        minibatch_gaussianity(RISK, THETA, batch_size=4, directions=directions)


@pytest.mark.parametrize("measure", [cosines, overlap])
def test_a_basis_is_not_empty(measure):
    with pytest.raises(ValueError, match=r"one or more columns.*\(5, 0\)"):
        measure(randn(5, 0), randn(5, 0))
