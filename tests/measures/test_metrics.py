"""Every measure is a function of (risk, θ) and, as a number, a metric of a run."""

import dataclasses

import numpy as np
import pytest
import torch

from flatmin import NoisyDiffusionClassifier, measures

from .. import oracles

METRICS = {
    **measures.SHARPNESS_MEASURES,
    "trace product": measures.trace_hessian_covariance,
    "exponent": measures.covariance_exponent,
    "noise scale": measures.gradient_noise,
    "curvature noise scale": measures.curvature_noise_scale,
    "signal to noise": measures.gradient_signal_to_noise,
    "loss-scaled alignment": measures.loss_scaled_alignment,
    "non-uniformity": measures.non_uniformity,
    "negative mass": measures.negative_mass,
    "effective rank": lambda r, t: measures.noise_spectrum(r, t, 3),
    "edge": lambda r, t: measures.edge_of_stability(r, t, lr=0.1),
    "distance": lambda r, t: measures.minibatch_gaussianity(r, t, batch_size=4),
    "overlap": lambda r, t: measures.alignment(r, t, 3).overlap,
    "gain": lambda r, t: measures.alignment(r, t, 3).anisotropy_gain,
}


def test_along_a_run():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4))
    clf = NoisyDiffusionClassifier(
        module_params={"hidden_layer_sizes": (5,)},
        max_iter=2,
        record_every=2,
        metrics=METRICS,
        random_state=0,
    ).fit(X, X[:, 0] > 0)
    y = (X[:, 0] > 0).astype(int)
    recorded = clf.history_[list(METRICS)]
    assert len(recorded) == 2
    assert (recorded.nunique() == len(recorded)).all()
    risk, last = clf.risk_, recorded.iloc[-1]
    for name, metric in METRICS.items():
        value = float(metric(risk, risk.params()))
        assert last[name] == pytest.approx(value, rel=1e-4), name
    for name, value in _by_dense_matrices(clf.module_, X, y).items():
        assert last[name] == pytest.approx(float(value), rel=1e-3), name


def _by_dense_matrices(module, X, y):
    """Return those that a line of algebra gives, in float64 and without flatmin."""
    at = oracles.dense(
        module,
        oracles.cross_entropy,
        torch.from_numpy(X).float(),
        torch.from_numpy(y),
        oracles.flat_parameters(module),
    )
    H, G, S, g = at.hessian, at.gauss_newton, at.covariance, at.gradient
    values = torch.linalg.eigvalsh(H)
    U, V = (torch.linalg.eigh(A)[1][:, -3:] for A in (H, S))
    return {
        "trace": 0.01**2 / 2 * H.trace(),  # σ = 0.01
        "max_eigenvalue": values[-1],
        "trace product": (H @ S).trace(),
        "noise scale": S.trace() / (g @ g),
        "loss-scaled alignment": (S @ G).trace() / (2 * at.value * G.square().sum()),
        "negative mass": values.clamp(max=0).abs().sum() / values.abs().sum(),
        "effective rank": S.trace() ** 2 / S.square().sum(),
        "overlap": (U.T @ V).square().sum() / 3,
    }


RESULTS = [n for n in measures.__all__ if dataclasses.is_dataclass(vars(measures)[n])]


@pytest.mark.parametrize("name", [n for n in RESULTS if n != "LayerAlignments"])
def test_results_print_arrays_by_their_shape(name):
    kind = getattr(measures, name)
    result = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(result, field.name, torch.zeros(100, 100))
    shown = repr(result)
    assert shown.startswith(f"{name}(")
    assert "of shape (100, 100)" in shown
    assert "tensor" not in shown
    assert "\n" not in shown


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_frozen(name):
    result = object.__new__(getattr(measures, name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.value = 0.0
