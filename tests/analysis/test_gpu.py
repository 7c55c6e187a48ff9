"""The analyzers on a GPU: a model on either side, the analysis where device says."""

import numpy as np
import pytest
import torch

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer

from ._problems import blobs, classifier, network, skorch_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

X, y = blobs()


def summary(model, device, loss=None):
    """Return what is asked of a model, as plain numbers."""
    settings = {"loss": loss, "device": device, "dtype": "float64", "random_state": 0}
    curvature = CurvatureAnalyzer(model, n_components=4, tol=1e-9, **settings)
    noise = NoiseCovarianceAnalyzer(model, n_components=4, tol=1e-9, **settings)
    curvature.fit(X, y)
    noise.fit(X, y)
    alignment = noise.alignment()
    scorer = SharpnessScorer(model, measure="trace", **settings).fit(X, y)
    spectrum = curvature.density()
    v = np.linspace(-1, 1, curvature.risk_.n_params)
    return [
        curvature.eigen().eigenvalues,
        curvature.trace().value,
        curvature.diagonal().value,
        curvature.matvec(v),
        spectrum.moment(2),
        # Not at 0, on whose sides rounding spreads a whole null space.
        spectrum.to_frame([0.05], width=0.1).to_numpy(),
        curvature.transform(X, y),
        curvature.score(X, y),
        noise.eigen().eigenvalues,
        noise.trace().value,
        noise.diagonal().value,
        noise.transform(X, y),
        noise.score(X, y),
        alignment.to_frame().loc[["overlap", "Tr(HΣ)"], "value"],
        scorer.sharpness_,
    ], noise.sample(2).shape


@pytest.mark.parametrize("make", [network, classifier, skorch_classifier])
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_as_on_a_cpu(make, home):
    model = make()
    if make is network:
        model.to(home)
    else:
        model.set_params(device=home).fit(X, y)
    loss = "cross_entropy" if make is network else None
    there, shape = summary(model, "cuda", loss)
    here, same_shape = summary(model, "cpu", loss)
    assert shape == same_shape
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_training_data_of_a_cpu_estimator():
    clf = classifier().fit(X, y)
    there = CurvatureAnalyzer(clf, device="cuda").eigen(3)
    assert isinstance(there.eigenvectors, np.ndarray)
    expected = CurvatureAnalyzer(clf).eigen(3).eigenvalues
    np.testing.assert_allclose(there.eigenvalues, expected, rtol=1e-4)
    assert clf.risk_.device.type == "cpu"
