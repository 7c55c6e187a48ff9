"""Every measure is a function of (risk, θ) and, as a number, a metric of a run."""

import numpy as np

from flatmin import NoisyDiffusionClassifier, measures

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
    recorded = clf.history_[list(METRICS)]
    assert len(recorded) == 2
    assert np.isfinite(recorded.to_numpy(dtype=float)).all()
    assert (recorded.nunique() == len(recorded)).all()
