"""CurvatureAnalyzer against dense float64 autograd."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from flatmin import CurvatureAnalyzer

from ._problems import N_CLASSES, N, blobs, network, truth

X, y = blobs()
NET = network().double()
TRUTH = truth(NET, X, y)
UNCENTRED = TRUTH.gradients.T @ TRUTH.gradients / N
MATRICES = {
    "hessian": TRUTH.hessian,
    "ggn": TRUTH.gauss_newton,
    "fisher": TRUTH.gauss_newton,
    "empirical_fisher": UNCENTRED,
}
D = len(UNCENTRED)
LAST = slice(16, D)  # weight and bias of the second layer
close = np.testing.assert_allclose


def analyzer(**params):
    settings = {"loss": "cross_entropy", "random_state": 0}
    return CurvatureAnalyzer(NET, **settings | params).fit(X, y)


@pytest.fixture(params=MATRICES)
def matrix(request):
    return request.param


@pytest.fixture(params=[None, "2", ["2.weight", "*.bias"]], ids=str)
def select(request):
    return request.param


def block(matrix, select):
    """Return the dense block that the analyzer should see."""
    chosen = {
        "None": np.arange(D),
        "2": np.arange(16, D),
        "['2.weight', '*.bias']": np.arange(12, D),
    }[str(select)]
    return MATRICES[matrix].numpy()[np.ix_(chosen, chosen)]


def test_eigenpairs(matrix, select):
    dense = block(matrix, select)
    result = analyzer(matrix=matrix, select=select, tol=1e-8).eigen(k=5)
    values = np.linalg.eigvalsh(dense)
    close(result.eigenvalues, values[:-6:-1], rtol=1e-6, atol=1e-12)
    close(
        dense @ result.eigenvectors,
        result.eigenvectors * result.eigenvalues,
        atol=1e-7 * values.max(),
    )
    assert result.converged.all()
    assert (np.abs(result.eigenvectors).max(0) == result.eigenvectors.max(0)).all()


def test_trace_diagonal_and_products(matrix, select):
    dense = block(matrix, select)
    model = analyzer(matrix=matrix, select=select)
    trace = model.trace()
    assert abs(trace.value - np.trace(dense)) <= 1e-8 + 4 * trace.stderr
    assert trace.stderr <= 0.021 * trace.value
    diagonal = model.diagonal()  # D products, so exact
    close(diagonal.value, np.diag(dense), atol=1e-10)
    assert not diagonal.stderr.any()
    V = np.random.default_rng(0).normal(size=(len(dense), 2))
    close(model.matvec(V), dense @ V, atol=1e-10)
    close(model.matvec(V[:, 0].tolist()), dense @ V[:, 0], atol=1e-10)


def test_the_spectrum(matrix):
    values = np.linalg.eigvalsh(MATRICES[matrix].numpy())
    result = analyzer(matrix=matrix).density()
    assert result.exact
    close(result.nodes[0], values, atol=1e-10)
    for p in (1, 2):
        close(result.moment(p), (np.mean(values**p), 0), atol=1e-10)
    frame = result.to_frame()
    area = np.trapezoid(frame["density"], frame["eigenvalue"])
    close([area, frame["cumulative"].iloc[-1]], 1, atol=1e-4)
    at = result.to_frame([values[-1] - 1e-9], width=0.1)
    close(at["cumulative"], (D - 1) / D)


def test_which_end():
    values = np.linalg.eigvalsh(TRUTH.hessian.numpy())
    model = analyzer(tol=1e-8)
    close(model.eigen(3, which="SA").eigenvalues, values[:3], atol=1e-9)
    largest = values[np.abs(values).argsort()[::-1][:3]]
    close(model.eigen(3, which="LM").eigenvalues, largest, atol=1e-9)
    assert len(model.eigen().eigenvalues) == 20
    assert len(model.set_params(n_components=99).fit(X, y).eigen().eigenvalues) == D


def test_transform_gives_gradients_in_the_basis(select):
    model = analyzer(select=select, n_components=4, tol=1e-8)
    X_new, y_new = blobs(7, seed=1)
    basis = model.eigen().eigenvectors
    chosen = model.risk_.layout.indices(select).numpy() if select else slice(None)
    gradients = truth(NET, X_new, y_new).gradients.numpy()[:, chosen]
    close(model.transform(X_new, y_new), gradients @ basis, atol=1e-9)
    close(model.fit_transform(X, y), model.transform(X, y))


def test_score_is_the_share_of_the_noise_in_the_basis(select):
    model = analyzer(select=select, n_components=3, tol=1e-8)
    X_new, y_new = blobs(15, seed=1)
    weights = np.linspace(0, 1, 15)
    chosen = model.risk_.layout.indices(select).numpy() if select else np.arange(D)
    covariance = truth(NET, X_new, y_new, weights=weights).covariance.numpy()
    covariance = covariance[np.ix_(chosen, chosen)]
    U = model.eigen().eigenvectors
    share = np.trace(U.T @ covariance @ U) / np.trace(covariance)
    close(model.score(X_new, y_new, weights), share, rtol=1e-9)
    assert model.score(X_new, y_new) != model.score(X_new, y_new, weights)
    with pytest.raises(ValueError, match=r"at least two. Got 1"):
        model.score(X_new[:1], y_new[:1])


@pytest.mark.parametrize(
    ("call", "name", "values"),
    [
        ("eigen", "k", [0, 2.5, True, "3"]),
        ("trace", "rtol", [-0.1, np.nan, True]),
        ("trace", "max_matvecs", [5, 20.5, None]),
        ("diagonal", "rtol", [-0.1, np.nan, True]),
        ("diagonal", "max_matvecs", [5, 20.5, None]),
        ("density", "n_probes", [1, 2.5, None]),
        ("density", "n_steps", [0, 2.5, True]),
    ],
)
def test_numbers_out_of_range(call, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be an? .* Got {value!r}"):
            getattr(analyzer(), call)(**{name: value})


@pytest.mark.parametrize("n", [3, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_noise_has_no_share(dtype, n):
    model = analyzer(dtype=dtype)
    with pytest.raises(
        ValueError, match=r"differ between examples by more than rounding\. Got Tr\(Σ\)"
    ):
        model.score(np.tile(X[:1], (n, 1)), np.zeros(n, int))
    flat = network()
    torch.nn.init.zeros_(flat[2].weight)
    model = CurvatureAnalyzer(flat, loss="cross_entropy", select="0", dtype=dtype)
    with pytest.raises(ValueError, match=r"Got Tr\(Σ\) = 0, where rounding"):
        model.fit(X, y).score(X, y)


def test_weights_of_the_examples():
    weights = np.linspace(0, 1, N)
    model = CurvatureAnalyzer(NET, loss="cross_entropy").fit(X, y, weights)
    close(model.trace().value, truth(NET, X, y, weights=weights).hessian.trace())


def test_an_estimate_carries_its_error_and_repeats_by_its_seed():
    big = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    trace = float(truth(big, X, y).hessian.trace())
    results = [
        CurvatureAnalyzer(big, loss="cross_entropy", random_state=seed)
        .fit(X, y)
        .trace(rtol=0.1)
        for seed in (0, 0, 1)
    ]
    first, again, other = results
    assert first == again != other
    for result in (first, other):
        assert result.stderr > 0
        assert abs(result.value - trace) < 4 * result.stderr
    state = np.random.RandomState(0)
    model = CurvatureAnalyzer(big, loss="cross_entropy", random_state=state).fit(X, y)
    assert model.trace().value != model.trace().value


def test_results_print_and_become_frames():
    model = analyzer(n_components=2)
    eigen = model.eigen()
    assert repr(eigen).startswith(f"2 eigenpairs of the hessian, {D} parameters (")
    frame = eigen.to_frame()
    assert list(frame) == ["eigenvalue", "residual", "converged"]
    assert list(frame.index) == [1, 2]
    trace = model.trace()
    assert repr(trace) == f"trace of the hessian: {trace.value:.6g} (exact)"
    assert float(trace) == trace.to_frame().loc["hessian", "trace"]
    diagonal = model.diagonal()
    frame = diagonal.to_frame()
    assert len(frame) == D
    assert list(frame["parameter"].unique()) == [name for name, _ in named()]
    assert "2.bias" in repr(diagonal)
    assert "50.0%" in repr(model.density())
    with pytest.raises(AttributeError):
        eigen.n_matvecs = 0


def named():
    return list(NET.named_parameters())


def test_coordinates_as_a_frame():
    model = analyzer(n_components=2).set_output(transform="pandas")
    frame = model.transform(X, y)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame) == ["curvatureanalyzer0", "curvatureanalyzer1"]


def test_what_is_prepared_once_is_kept():
    model = analyzer()
    first = model.eigen()
    assert model.eigen() is first
    operator = model._operator(model.risk_)
    before = operator.n_matvecs
    model.matvec(np.ones(D))
    assert operator.n_matvecs == before + 1


def test_settings_may_change_after_fit():
    model = analyzer(n_components=3)
    assert model.transform(X, y).shape[1] == 3
    model.set_params(matrix="ggn", n_components=2, select="2")
    fresh = analyzer(matrix="ggn", n_components=2, select="2")
    close(model.eigen().eigenvalues, fresh.eigen().eigenvalues)
    close(model.trace().value, fresh.trace().value)
    assert model.transform(X, y).shape[1] == 2
    assert model.set_output(transform="pandas").transform(X, y).shape[1] == 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"matrix": "hesian"}, r"'matrix' parameter .* Got 'hesian'"),
        ({"n_components": 0}, r"'n_components' parameter .* Got 0"),
        ({"tol": 0}, r"'tol' parameter .* Got 0"),
        ({"loss": "crossentropy"}, r"did you mean 'cross_entropy'"),
        ({"dtype": "float16"}, r"dtype must be 'float32' or 'float64'"),
        ({"select": "3"}, r"select must name trainable parameters"),
    ],
)
def test_a_wrong_parameter_is_named(params, message):
    with pytest.raises(ValueError, match=message):
        analyzer(**params)


def test_k_must_fit():
    with pytest.raises(ValueError, match=rf"between 1 and D = {D}. Got {D + 1}"):
        analyzer().eigen(D + 1)


def test_fisher_needs_a_likelihood():
    model = analyzer(loss=nn.MultiMarginLoss(), matrix="fisher")
    with pytest.raises(TypeError, match="needs a likelihood"):
        model.eigen()


def test_class_indices_beyond_the_outputs():
    with pytest.raises(ValueError, match=f"Got labels from 0 to {N_CLASSES}"):
        analyzer().fit(X, y + (y == 2))


def test_float64_on_a_float32_module():
    net = network()
    model = CurvatureAnalyzer(net, loss="cross_entropy", dtype="float64").fit(X, y)
    close(model.trace().value, truth(net, X, y).hessian.trace(), rtol=1e-12)
    assert model.matvec(np.ones(D)).dtype == np.float64
    assert next(net.parameters()).dtype == torch.float32
    model.set_params(dtype=None).fit(X, y)
    assert model.matvec(np.ones(D)).dtype == np.float32
