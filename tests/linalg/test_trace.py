"""Traces: exact where that is cheap, estimates in units of their own error."""

import pytest
import torch

from flatmin.linalg import (
    AbsoluteOperator,
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    trace,
)

from ._matrices import SPECTRA, Bare, N, operator, randn, rng, wishart

close = torch.testing.assert_close
ESTIMATES = ["hutchinson", "xtrace", "auto"]


@pytest.mark.parametrize("size", [1, 7, 200])
def test_small_matrices_are_exact(size):
    A = randn(size, size)
    A = FunctionOperator(lambda v, A=A: A @ v, size, dtype=torch.float64)
    result = trace(A)
    close(result.value, A.to_dense().trace())
    assert result.stderr == 0
    assert result.n_matvecs == size


def test_exact_on_request():
    A = Bare(SPECTRA["indefinite"])
    result = trace(A, method="exact", max_matvecs=10)
    close(result.value, A.matrix.trace())
    assert (result.stderr, result.n_matvecs) == (0, N)


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_batches_are_exact(method):
    result = trace(DenseOperator(randn(3, 5, 5)), method=method)
    close(result.value, randn(3, 5, 5).diagonal(dim1=-2, dim2=-1).sum(-1))
    assert result.stderr.shape == (3,)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_a_batch_has_no_estimate(method):
    with pytest.raises(ValueError, match=rf"{method}' takes one matrix. Got several"):
        trace(DenseOperator(randn(3, 5, 5)), method=method)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 13])
def test_xtrace_of_tiny_matrices(size):
    A = Bare(torch.linspace(2, -1, size))
    result = trace(A, method="xtrace", rng=0)
    assert (result.value - A.matrix.trace()).abs() <= 4 * result.stderr + 1e-9
    assert result.n_matvecs == (size if size <= 10 else 2 * size)


def test_a_sketch_fits_into_memory(monkeypatch):
    monkeypatch.setattr("flatmin.linalg._sketch._ROOM", 4 * N * 12)
    A = Bare(SPECTRA["outliers"])
    assert trace(A, method="xtrace", rtol=0, rng=0).n_matvecs == 24
    # Too small to be better than a plain mean, which keeps nothing.
    assert trace(A, rtol=0, rng=0).n_matvecs == 200


def test_an_operator_that_knows_its_trace_takes_no_products():
    diagonal, dense = DiagonalOperator(torch.arange(300.0)), operator([1.0] * 300)
    for A, expected in [
        (diagonal, 300 * 299 / 2),
        (dense, 300),
        (2 * diagonal - diagonal, 300 * 299 / 2),
    ]:
        result = trace(A)
        assert float(result.value) == pytest.approx(expected)
        assert (result.stderr, result.n_matvecs) == (0, 0)
    # In a sum, one term that does not know is enough.
    assert trace(dense + Bare(SPECTRA["zero"]), rng=0).n_matvecs > 0


def test_a_trace_that_was_handed_in_keeps_its_error():
    A = DiagonalOperator(torch.tensor([2.0, -3.0]))
    known = AbsoluteOperator(
        A, torch.tensor(5.2), trace_stderr=torch.tensor(0.3), tol=1e-6
    )
    other = AbsoluteOperator(A, torch.tensor(4.9), trace_stderr=torch.tensor(0.4))
    for matrix, value, stderr in (
        (known, 5.2, 0.3),
        (-2 * known, -10.4, 0.6),
        (known + other + A, 9.1, 0.5),
        (A, -1.0, 0.0),
    ):
        found = trace(matrix)
        assert float(found) == pytest.approx(value)
        assert float(found.stderr) == pytest.approx(stderr)


def test_a_diagonal_matrix_has_no_variance():
    A = DiagonalOperator(torch.arange(300.0))
    result = trace(A, method="hutchinson", rng=0)
    assert float(result.value) == 300 * 299 / 2
    assert (result.stderr, result.n_matvecs) == (0, 10)


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("name", SPECTRA)
def test_two_standard_errors_hold_nine_in_ten(name, method):
    """Over stopping points from ten products on: also early stops are honest."""
    A = Bare(SPECTRA[name])
    exact, inside, runs = float(A.matrix.trace()), 0, 0
    for rtol in (0.3, 0.1, 0.02):
        for seed in range(20):
            result = trace(A, method=method, rtol=rtol, rng=1000 + seed)
            error = abs(float(result.value) - exact)
            inside += error <= 2 * float(result.stderr) + 1e-9
            runs += 1
    # A true coverage of 0.9 falls below 0.77 in one case of a thousand.
    assert inside / runs > 0.77


@pytest.mark.parametrize("name", ["outliers", "decaying", "indefinite", "one large"])
@pytest.mark.parametrize(("method", "limit"), [("hutchinson", 20), ("xtrace", 16)])
def test_estimates_are_unbiased_and_their_errors_true(name, method, limit):
    A = Bare(SPECTRA[name])
    results = [
        trace(A, method=method, rtol=0, max_matvecs=limit, rng=seed)
        for seed in range(150)
    ]
    assert {r.n_matvecs for r in results} == {limit}
    errors = torch.stack([r.value for r in results]) - A.matrix.trace()
    spread = errors.std()
    assert errors.mean().abs() < 4 * spread / 150**0.5
    told = torch.stack([r.stderr for r in results]).square().mean().sqrt()
    # The jackknife's is an upper bound, up to the noise of 150 runs.
    assert 0.8 * spread < told < (1.25 if method == "hutchinson" else 2.5) * spread


def test_the_variance_is_that_of_random_signs():
    A = Bare(SPECTRA["indefinite"])
    told = [
        trace(A, method="hutchinson", rtol=0, max_matvecs=20, rng=seed).stderr
        for seed in range(200)
    ]
    # Var zᵀAz = 2 (‖A‖²_F - Σ a²ᵢᵢ).
    variance = 2 * (A.matrix.square().sum() - A.matrix.diagonal().square().sum())
    actual = torch.stack(told).square().mean() * 20
    assert float(actual) == pytest.approx(float(variance), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["low rank", "zero", "identity"])
def test_xtrace_is_exact_for_low_ranks_and_the_identity(name, dtype):
    A = Bare(SPECTRA[name], dtype)
    result = trace(A, method="xtrace", rng=0)
    eps = torch.finfo(dtype).eps
    assert (result.value.double() - A.matrix.trace()).abs() <= 100 * eps * N**0.5
    assert result.stderr <= 100 * eps * N**0.5
    assert result.n_matvecs == 20


@pytest.mark.parametrize("limit", [20, 60])
def test_xtrace_of_a_diagonal_of_low_rank(limit):
    # Its range holds coordinate axes, among which an empty QR would choose as well.
    d = torch.zeros(300, dtype=torch.float64)
    d[:3] = torch.tensor([3.0, -2, 4])
    result = trace(
        DiagonalOperator(d), method="xtrace", rtol=0, max_matvecs=limit, rng=0
    )
    close(result.value, torch.tensor(5.0).double())
    assert result.stderr < 1e-12


def test_xtrace_by_its_definition():
    """Against k projections, one for each vector that is left out."""
    A, k = Bare(SPECTRA["outliers"]), 8
    result = trace(A, method="xtrace", rtol=0, max_matvecs=2 * k, rng=0)
    generator = rng(0)
    Omega = torch.stack(
        [torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(k)],
        dim=1,
    )
    Omega = Omega / Omega.norm(dim=0) * N**0.5
    A = A.matrix

    def leave_one_out(Omega):
        estimates = []
        for i in range(Omega.shape[1]):
            others = torch.arange(Omega.shape[1]) != i
            Q = torch.linalg.qr(A @ Omega[:, others]).Q
            u = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
            scale = (N - Q.shape[1]) / (u @ u)
            estimates.append((Q.T @ A @ Q).trace() + scale * (u @ A @ u))
        return torch.stack(estimates).mean()

    close(result.value, leave_one_out(Omega))
    without = [leave_one_out(Omega[:, torch.arange(k) != j]) for j in range(k)]
    variance = (k - 1) * torch.stack(without).var(correction=0)
    close(result.stderr, variance.sqrt())


@pytest.mark.parametrize("name", ["outliers", "decaying", "one large"])
def test_auto_finds_large_eigenvalues(name):
    A = Bare(SPECTRA[name])
    auto = [trace(A, rng=seed) for seed in range(10)]
    plain = [trace(A, method="hutchinson", rng=seed) for seed in range(10)]
    assert sum(r.n_matvecs for r in auto) < 0.7 * sum(r.n_matvecs for r in plain)
    for result in auto:
        assert result.stderr <= 0.025 * result.value
        assert (result.value - A.matrix.trace()).abs() < 5 * result.stderr


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("seed", range(3))
def test_wishart(seed, method):
    A = wishart(seed)
    product = FunctionOperator(lambda v: A @ v, N, dtype=torch.float64)
    result = trace(product, method=method, rng=seed)
    assert result.stderr <= 0.02 * result.value
    assert (result.value - A.trace()).abs() < 4 * result.stderr
    assert result.n_matvecs == product.n_matvecs < 120


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("rtol", [0.1, 0.05, 0.03])
def test_products_are_taken_until_the_error_is_small_enough(method, rtol):
    A = Bare(torch.linspace(-0.5, 1, N))
    result = trace(A, method=method, rtol=rtol, max_matvecs=290, rng=0)
    assert result.stderr <= rtol * result.value
    assert (result.value - A.matrix.trace()).abs() < 4 * result.stderr
    assert 10 <= result.n_matvecs == A.n_matvecs < 290


def test_a_small_sample_alone_does_not_stop():
    # Ten draws may agree by chance; with fewer than thirty only their own size counts.
    A = Bare(SPECTRA["indefinite"])
    taken = {
        trace(A, method="hutchinson", rtol=0.1, rng=seed).n_matvecs
        for seed in range(30)
    }
    assert min(taken) == 30


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("limit", [6, 7, 20])
def test_a_trace_of_zero_is_told_by_its_error(method, limit):
    A = Bare(torch.linspace(-1, 1, N))
    result = trace(A, method=method, max_matvecs=limit, rng=1)
    assert result.n_matvecs == (limit // 2 * 2 if method == "xtrace" else limit)
    assert result.value.abs() < 5 * result.stderr


@pytest.mark.parametrize("method", ESTIMATES)
def test_dtype_and_seed(method):
    A = Bare(SPECTRA["outliers"], torch.float32)

    def run(seed):
        return trace(A, method=method, rng=seed, max_matvecs=60)

    a = run(0)
    assert a.value.dtype == a.stderr.dtype == torch.float32
    assert a.value == run(0).value == run(rng(0)).value != run(1).value
    assert run(None).value != run(None).value
    assert (a.value - A.matrix.trace()).abs() < 4 * a.stderr


def test_global_generators_are_left_alone():
    state = torch.get_rng_state()
    for method in ESTIMATES:
        trace(Bare(SPECTRA["outliers"]), method=method)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_goes_to_standard_error(capsys):
    trace(Bare(SPECTRA["outliers"]), rng=0)
    assert capsys.readouterr().err == ""
    trace(Bare(SPECTRA["outliers"]), rng=0, verbose=True)
    output = capsys.readouterr()
    assert "trace" in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_matvecs": 5}, "max_matvecs must be an integer of at least 6. Got 5"),
        ({"max_matvecs": 9.5}, "max_matvecs must be an integer of at least 6. Got 9.5"),
        ({"rtol": float("nan")}, "rtol must be a finite number of at least 0. Got nan"),
        ({"method": "xdiag"}, "Unknown method 'xdiag'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        trace(operator([1.0]), **options)
