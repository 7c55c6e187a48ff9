"""NoiseCovarianceAnalyzer against dense float64 autograd and scikit-learn's PCA."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer

from ._problems import N, blobs, network, truth

X, y = blobs()
NET = network().double()
TRUTH = truth(NET, X, y)
SIGMA = TRUTH.covariance.numpy()
D = len(SIGMA)
close = np.testing.assert_allclose


def analyzer(**params):
    settings = {"loss": "cross_entropy", "random_state": 0, "tol": 1e-8}
    return NoiseCovarianceAnalyzer(NET, **settings | params).fit(X, y)


@pytest.fixture(params=[None, "2"], ids=str)
def select(request):
    return request.param


def block(matrix, select):
    return matrix if select is None else matrix[16:, 16:]


def test_trace_and_diagonal(select):
    model = analyzer(select=select)
    diagonal = np.diag(block(SIGMA, select))
    close(model.trace().value, diagonal.sum(), rtol=1e-10)
    assert model.trace().stderr == 0
    close(model.diagonal().value, diagonal, rtol=1e-10)
    assert len(model.diagonal().to_frame()) == len(diagonal)


@pytest.mark.parametrize("which", ["LA", "SA"])
def test_eigenpairs(select, which):
    sigma = block(SIGMA, select)
    result = analyzer(select=select).eigen(k=4, which=which)
    values = np.linalg.eigvalsh(sigma)
    expected = values[::-1][:4] if which == "LA" else values[:4]
    close(result.eigenvalues, expected, atol=1e-10)
    close(
        sigma @ result.eigenvectors,
        result.eigenvectors * result.eigenvalues,
        atol=1e-9,
    )


def test_no_more_eigenpairs_than_differences_of_examples():
    model = NoiseCovarianceAnalyzer(NET, loss="cross_entropy").fit(X[:6], y[:6])
    assert len(model.eigen().eigenvalues) == 5
    with pytest.raises(ValueError, match=r"between 1 and min\(D, N - 1\) = 5"):
        model.eigen(6)


def test_draws_have_the_covariance(select):
    sigma = block(SIGMA, select)
    draws = analyzer(select=select).sample(2000)
    assert draws.shape == (2000, len(sigma))
    squares = draws[:, :, None] * draws[:, None, :]
    stderr = squares.std(0) / np.sqrt(len(draws))
    assert (np.abs(squares.mean(0) - sigma) < 5 * stderr + 1e-12).all()
    mean_error = np.sqrt(np.diag(sigma) / len(draws))
    assert (np.abs(draws.mean(0)) < 5 * mean_error + 1e-12).all()


def test_draws_by_the_seed():
    one, other = (analyzer(random_state=seed) for seed in (0, 1))
    assert (one.sample(2) == one.sample(2)).all()
    assert (one.sample(1) != other.sample(1)).all()
    with pytest.raises(ValueError, match=r"n must be an integer of at least 1. Got 0"):
        one.sample(0)


def test_coordinates_are_those_of_pca():
    X_new, y_new = blobs(8, seed=1)
    new = truth(NET, X_new, y_new).gradients.numpy()
    pca = PCA(4).fit(TRUTH.gradients.numpy())
    model = analyzer(n_components=4)
    basis = model.eigen().eigenvectors
    signs = np.sign((pca.components_ * basis.T).sum(1))
    close(model.transform(X_new, y_new), pca.transform(new) * signs, atol=1e-8)
    close(model.eigen().eigenvalues, pca.explained_variance_ * (N - 1) / N)


def test_score_is_the_overlap_with_the_hessian(select):
    X_new, y_new = blobs(25, seed=1)
    model = analyzer(select=select, n_components=5)
    V = np.linalg.eigh(block(SIGMA, select))[1][:, -5:]
    hessian = block(truth(NET, X_new, y_new).hessian.numpy(), select)
    U = np.linalg.eigh(hessian)[1][:, -5:]
    close(model.score(X_new, y_new), np.square(U.T @ V).sum() / 5, rtol=1e-6)


def test_alignment(select):
    model = analyzer(select=select)
    result = model.alignment(k=5)
    hessian, sigma = block(TRUTH.hessian.numpy(), select), block(SIGMA, select)
    (a, U), (b, V) = np.linalg.eigh(hessian), np.linalg.eigh(sigma)
    overlap = np.square(U[:, -5:].T @ V[:, -5:]).sum() / 5
    assert result.n_params == len(sigma)
    close(result["overlap"], overlap, rtol=1e-6)
    close(result["Tr(HΣ)"], np.trace(hessian @ sigma), rtol=1e-9)
    close(result["Tr(Σ)"], np.trace(sigma), rtol=1e-9)
    close(result.pairs["hessian"], a[:-6:-1], atol=1e-9)
    close(result.pairs["covariance"], b[:-6:-1], atol=1e-9)
    products = np.abs(U[:, :-6:-1].T @ V[:, :-6:-1])
    close(result.inner_products, products, atol=1e-5)
    close(result.pairs["cosine"], np.diag(products), atol=1e-5)
    assert (result.pairs["hessian_residual"] < 1e-7).all()
    close(result.to_frame().loc["overlap"], [overlap, 0], rtol=1e-6)
    printed = repr(result)
    assert "Tr(H)Tr(Σ)/D" in printed
    assert "covariance_normalised" in printed
    with pytest.raises(KeyError, match=r"'gain'. There are: .*'overlap', .*, 'a'"):
        result["gain"]


def test_alignment_takes_the_basis_by_itself():
    assert len(analyzer(n_components=3).alignment().pairs) == 3


def test_weights_of_the_examples():
    weights = np.linspace(0, 1, N)
    model = NoiseCovarianceAnalyzer(NET, loss="cross_entropy").fit(X, y, weights)
    sigma = truth(NET, X, y, weights=weights).covariance
    close(model.trace().value, torch.trace(sigma), rtol=1e-9)


def test_verbose_shows_what_is_at_work_and_changes_nothing(capsys):
    few = {"max_matvecs": 6, "rtol": 0.5}  # so that a trace is estimated
    shown = {
        "sample": ("draws", lambda model: model.sample(2)),
        "alignment": ("trace", lambda model: model.alignment(2, **few).inner_products),
        "transform": ("coordinates", lambda model: model.transform(X[:5], y[:5])),
    }
    for title, call in shown.values():
        quiet = call(analyzer(n_components=2))
        assert capsys.readouterr().err == ""
        close(call(analyzer(n_components=2, verbose=True)), quiet, rtol=1e-12)
        assert title in capsys.readouterr().err


def test_the_layers_in_one_table():
    found = analyzer().alignment(3, by_layer=True)
    assert list(found.layers) == ["0", "2"]
    for layer, part in (("0", slice(0, 16)), ("2", slice(16, None))):
        H, S = TRUTH.hessian.numpy()[part, part], SIGMA[part, part]
        values = found.to_frame()["value"][layer]
        close(values["Tr(H)"], np.trace(H), rtol=1e-8)
        close(values["Tr(Σ)"], np.trace(S), rtol=1e-8)
        close(values["‖H‖_F"], np.linalg.norm(H), rtol=1e-8)
        close(values["‖Σ‖_F"], np.linalg.norm(S), rtol=1e-8)
        close(values["Tr(HΣ)"], np.trace(H @ S), rtol=1e-8)
        u, v = (np.linalg.eigh(matrix)[1][:, -3:] for matrix in (H, S))
        close(values["overlap"], np.square(u.T @ v).sum() / 3, rtol=1e-6)
        alone = analyzer(select=layer).alignment(3)
        assert found.layers[layer].n_matvecs <= alone.n_matvecs
        close(values, alone.to_frame()["value"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"of all layers\. Got select='2'"):
        analyzer(select="2").alignment(by_layer=True)


def test_the_layers_within_the_errors_of_estimates():
    found = analyzer().alignment(2, by_layer=True, max_matvecs=10, rtol=0.3)
    frame = found.to_frame()
    assert frame["stderr"].max() > 0
    S, H = SIGMA[16:, 16:], TRUTH.hessian.numpy()[16:, 16:]
    for name, wanted in [("Tr(HΣ)", np.trace(H @ S)), ("Tr(H)", np.trace(H))]:
        value, stderr = frame.loc[("2", name)]
        assert abs(value - wanted) <= 4 * stderr + 1e-9 * abs(wanted)
    assert frame.loc[("2", "‖Σ‖_F"), "value"] == pytest.approx(np.linalg.norm(S))


def test_what_is_chance_is_left_out():
    """Four examples ten times: Σ has rank 3, and the rows have no order."""
    rng = np.random.RandomState(0)
    X, y = np.repeat(rng.randn(4, 4), 10, 0), np.repeat([0, 1, 2, 0], 10)
    other, labels = rng.randn(20, 4), rng.randint(0, 3, 20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    settings = {"loss": "cross_entropy", "random_state": 0}
    scores, columns = [], []
    for seed in range(3):
        order = np.random.RandomState(seed).permutation(40)
        model = NoiseCovarianceAnalyzer(net, n_components=10, **settings)
        model.fit(X[order], y[order])
        ggn = CurvatureAnalyzer(net, matrix="ggn", **settings).fit(X[order], y[order])
        scores.append([model.score(other, labels), ggn.score(other, labels)])
        columns.append(model.transform(other, labels))
        assert columns[-1].shape == (20, 3)
        assert model.get_feature_names_out().shape == (3,)
        assert len(model.eigen().eigenvalues) == 10
        assert ggn.transform(other, labels).shape == (20, 8)  # of 4 (C - 1)
    np.testing.assert_allclose(scores, [scores[0]] * 3, rtol=1e-6)
    np.testing.assert_allclose(columns, [columns[0]] * 3, atol=1e-9)
    # H of the same example five times has rank 8, as V's first vectors have.
    few = np.repeat(other[:1], 5, 0), np.repeat(labels[:1], 5)
    model = NoiseCovarianceAnalyzer(net, **settings).fit(other, labels)
    found, right = (truth(net, *part) for part in ((other, labels), few))
    V = torch.linalg.eigh(found.covariance)[1].flip(1)
    values, U = torch.linalg.eigh(right.hessian)
    k = int((values > 1e-10).sum())
    inner = U.flip(1)[:, :k].mT @ V[:, :k]
    assert 0 < k < 20
    assert model.score(*few) == pytest.approx(float(inner.square().sum() / k))


def test_small_eigenvalues_are_known_in_single_precision():
    """Σ comes from gradients by a Gram matrix in float64: λ far below eps λ₁."""
    rng = np.random.RandomState(1)
    X, y = rng.randn(30, 4), rng.randint(0, 3, 30)
    X *= np.array([1.0, 1e-1, 1e-2, 3e-3])
    net = nn.Linear(4, 3)
    columns = []
    for dtype in ("float32", "float64"):
        model = NoiseCovarianceAnalyzer(
            net, loss="cross_entropy", n_components=29, dtype=dtype, random_state=0
        ).fit(X, y)
        columns.append(np.abs(model.transform(X, y)))
    found = model.eigen().eigenvalues
    assert columns[0].shape == columns[1].shape == (30, 10)  # (4 + 1)(3 - 1)
    assert found[9] < 1e-5 * found[0]
    ours, right = (found / columns[1].max(0) for found in columns)
    np.testing.assert_allclose(ours, right, atol=1e-3)


def test_without_noise_there_are_no_directions():
    X, y = np.repeat([[1.0, 2.0, 3.0, 4.0]], 10, 0), np.zeros(10, int)
    net = nn.Linear(4, 3).double()
    model = NoiseCovarianceAnalyzer(net, loss="cross_entropy").fit(X, y)
    with pytest.raises(ValueError, match="eigenvalue of the gradient covariance that"):
        model.transform(X, y)
    flat = CurvatureAnalyzer(net, loss=lambda outputs, targets: outputs.sum(1))
    with pytest.raises(ValueError, match="eigenvalue of the hessian that is more than"):
        flat.fit(X, y).transform(X, y)
