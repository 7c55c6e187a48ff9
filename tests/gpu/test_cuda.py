"""On a GPU everything is what it is on a CPU, and an iteration does not wait for it."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from flatmin import NoisyDiffusionClassifier
from flatmin.curvature import HessianOperator
from flatmin.dynamics import FlatBinding, NoisyDescent
from flatmin.estimators import NoisyDiffusionRegressor
from flatmin.linalg import eigsh, spectral_density, trace
from flatmin.measures import expected_sharpness
from flatmin.modules import LeNet
from flatmin.noise import METHODS, make_noise_law
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from ..risk._cases import CASES, SINGLE, make_risk, problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every_method = pytest.mark.parametrize("method", METHODS)
# Control flow, a loss and the recurrent cells of CUDA without forward mode.
NOT_TRACED = {"branching", "mlp, Huber", "LSTM", "GRU"}
BATCHES = torch.tensor([[0, 1, 2], [6, 3, 0]])


def quantities(risk, theta):
    """Return everything that a risk tells at θ, on the CPU."""
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(len(theta), generator=rng, dtype=torch.float64).to(theta)
    c = torch.randn(risk.n_examples, generator=rng, dtype=torch.float64).to(theta)
    point = risk.linearize(theta)
    found = {
        "value": risk.value(theta),
        "gradient": risk.gradient(theta),
        "weighted gradient": risk.weighted_gradient(theta, c),
        "batch gradients": risk.batch_gradients(theta, BATCHES.to(theta.device)),
        "rows": torch.cat(list(risk.per_example_gradients(theta))),
        "squared norms": risk.squared_norms(theta),
        "variances": risk.gradient_variances(theta),
        "directional derivatives": point.directional_derivatives(v),
        "H v": point.hvp(v),
        "G v": point.ggn(v),
        "J v": point.jvp(v),
        "J' u": point.vjp(point.jvp(v)),
        "Tr G": risk.gauss_newton_traces(theta),
        "outputs": risk.outputs(theta),
    }
    assert {value.device.type for value in found.values()} == {theta.device.type}
    return {name: value.double().cpu() for name, value in found.items()}


def assert_same(found, expected, rtol):
    for name, value in expected.items():
        error = (found[name] - value).norm()
        assert error <= rtol * value.norm() + 1e-12, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("traced", [False, True], ids=["reference", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_every_quantity_is_that_of_the_cpu(name, traced, monkeypatch):
    expected = quantities(make_risk(name), problem(name).theta)
    if traced:
        monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The loss does not depend")
        risk = problem(name).risk(device="cuda", chunk_size=3)
    found = quantities(risk, problem(name).theta.cuda())
    # PyTorch's own gradient of the fused weight norm has nine digits on a GPU.
    assert_same(found, expected, 1e-7 if name == "weight norm" else 1e-9)
    if traced and name not in NOT_TRACED:
        assert risk.paths["hvp"] == "graph"


@pytest.mark.parametrize("name", SINGLE)
def test_float32(name, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    expected = quantities(make_risk(name), problem(name).theta)
    single = problem(name, torch.float32)
    found = quantities(single.risk(device="cuda"), problem(name).theta.float().cuda())
    assert_same(found, expected, 1e-4)


def lenet_risk(n=96):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.rand(n, 1, 28, 28), torch.randint(0, 10, (n,))
        return EmpiricalRisk(
            LeNet(), "cross_entropy", X, y, device="cuda", dtype="float64"
        )


@pytest.mark.parametrize("method", [name for name in METHODS if name != "alpha_stable"])
def test_the_noise_has_the_size_of_its_covariance(method):
    risk, rng = lenet_risk(), torch.Generator("cuda").manual_seed(0)
    known = METHODS[method]._get_param_names()
    settings = {"batch_size": 5, "n_components": 4, "tol": 1e-6}
    law = make_noise_law(method, **{k: v for k, v in settings.items() if k in known})
    theta = risk.params()
    state = law.refresh(risk, theta, rng)
    draws = [law.noisy_gradient(risk, theta, state, rng)[1] for _ in range(200)]
    spread = torch.stack(draws).var(0, correction=1).sum()
    expected = law.trace(risk, theta, state)
    # A single direction is the worst case: then the mean of 200 varies by a tenth.
    assert spread.device.type == "cuda"
    assert float(spread) == pytest.approx(float(expected), rel=0.5, abs=1e-30)


@every_method
def test_iterations_do_not_wait_for_the_gpu(method):
    """The waits of a block do not grow with its iterations."""

    def waits(n_iter):
        risk = lenet_risk()
        module = copy.deepcopy(risk._model.module)
        binding = FlatBinding(module)
        law = make_noise_law(method)
        descent = NoisyDescent(
            risk,
            law,
            binding,
            torch.optim.SGD(binding.params, lr=1e-3),
            rng=torch.Generator("cuda").manual_seed(0),
        )
        descent.run(1)
        descent.refresh()
        law.set_params(refresh_every=10**6) if law.refresh_every > 1 else None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                descent.run(n_iter)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message).lower() for w in caught)

    short, long = waits(2), waits(12)
    # The eigensolver of a Gram matrix looks whether it has converged.
    growth = 10 if method == "gld_leading" else 0
    assert long <= max(short, 2) + growth, f"{short} in 2 iterations, {long} in 12"


def test_eigenpairs_traces_and_densities():
    risk = lenet_risk()
    theta = risk.params()
    host = EmpiricalRisk(
        risk._model.module.cpu(),
        "cross_entropy",
        risk._data.X.cpu(),
        risk._data.y.cpu(),
    )
    here = HessianOperator(host, theta.cpu())
    there = HessianOperator(lenet_risk(), theta)
    pairs = eigsh(there, 5, tol=1e-8, rng=0)
    assert pairs.eigenvectors.device.type == "cuda"
    expected = eigsh(here, 5, tol=1e-8, rng=0)
    torch.testing.assert_close(
        pairs.eigenvalues.cpu(), expected.eigenvalues, rtol=1e-6, atol=0
    )
    estimate = trace(there, max_matvecs=30, rng=0)
    reference = trace(here, max_matvecs=30, rng=0)
    spread = float(estimate.stderr.cpu() + reference.stderr)
    assert abs(float(estimate.value) - float(reference.value)) < 5 * spread
    density = spectral_density(there, n_probes=2, n_steps=20, rng=0)
    mean = density.mean(lambda x: x)[0]
    assert abs(float(mean) * risk.n_params - float(reference.value)) < 10 * spread
    assert float(expected_sharpness(lenet_risk(), theta, n_draws=5)) != 0


def test_a_loader_is_streamed():
    risk = lenet_risk()
    data = TensorDataset(risk._data.X.cpu(), risk._data.y.cpu())
    streamed = EmpiricalRisk(
        risk._model.module,
        "cross_entropy",
        DataLoader(data, batch_size=17),
        device="cuda",
        dtype="float64",
    )
    theta = risk.params()
    for name in ("gradient", "gradient_variances"):
        torch.testing.assert_close(
            getattr(streamed, name)(theta), getattr(risk, name)(theta)
        )


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X[:300] / 16).astype(np.float32), y[:300] + 5


@every_method
def test_fit(method, digits):
    X, y = digits
    settings = {"method": method, "lr": 0.1, "max_iter": 30, "random_state": 0}
    module = {"module_params": {"hidden_layer_sizes": (8,)}}
    there = NoisyDiffusionClassifier(**module, **settings, device="cuda").fit(X, y)
    assert there.params_.dtype == np.float32
    assert set(there.predict(X)) <= set(y)
    assert np.isfinite(there.history_["loss"]).all()
    assert next(there.module_.parameters()).device.type == "cuda"
    for copied in (pickle.loads(pickle.dumps(there)), copy.deepcopy(there)):
        np.testing.assert_array_equal(copied.predict(X), there.predict(X))
    again = NoisyDiffusionClassifier(**module, **settings, device="auto").fit(X, y)
    np.testing.assert_allclose(again.params_, there.params_, rtol=1e-3, atol=1e-4)
    if method == "gd":  # without noise the device does not matter
        here = NoisyDiffusionClassifier(**module, **settings).fit(X, y)
        np.testing.assert_allclose(here.params_, there.params_, rtol=1e-3, atol=1e-5)


def test_warm_up_metrics_validation_and_regression(digits, tmp_path):
    X, y = digits
    regressor = NoisyDiffusionRegressor(
        method="gld_diagonal",
        lr=0.01,
        max_iter=20,
        warmup={"max_iter": 10},
        record_every=5,
        memory=str(tmp_path),
        metrics={"sharpness": lambda r, t: expected_sharpness(r, t, n_draws=3)},
        optimizer="adam",
        device="cuda",
        random_state=0,
    )
    regressor.fit(X, y.astype(float), X_val=X[:50], y_val=y[:50].astype(float))
    after = regressor.history_[regressor.history_["iteration"] > 10]
    assert np.isfinite(after["sharpness"]).all()
    assert regressor.predict(X).shape == (300,)
