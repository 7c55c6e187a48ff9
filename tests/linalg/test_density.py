"""Spectral densities against all eigenvalues, in units of their own errors."""

import math

import pytest
import torch

from flatmin.linalg import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    ScaledIdentityOperator,
    spectral_density,
)

from ._matrices import SPECTRA, Bare, N, operator, randn, rng, wishart

close = torch.testing.assert_close


def quadrature(A, **options):
    return spectral_density(A, method="lanczos", **{"rng": 0, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("name", SPECTRA)
def test_density_integrates_to_one(name, method, dtype):
    result = spectral_density(Bare(SPECTRA[name], dtype), method=method, rng=0)
    assert result.nodes.dtype == result.weights.dtype == torch.float64
    close(result.weights.sum(1), torch.ones(len(result.weights)).double())
    assert (result.weights >= 0).all()
    low, high = float(min(SPECTRA[name])), float(max(SPECTRA[name]))
    for width in (0.05, 1.0):
        grid = torch.linspace(low - 8 * width, high + 8 * width, 4001).double()
        value, stderr = result.density(grid, width)
        assert value.shape == stderr.shape == grid.shape
        assert (value >= 0).all()
        assert float(torch.trapezoid(value, grid)) == pytest.approx(1, abs=1e-6)
    ends = torch.tensor([low - 1e-3, high + 1e-3])
    close(result.cumulative(ends)[0], torch.tensor([0.0, 1]).double())


@pytest.mark.parametrize("name", SPECTRA)
def test_exact_for_small_matrices(name):
    values = torch.tensor(SPECTRA[name]).double().sort().values
    result = spectral_density(Bare(SPECTRA[name]))
    assert result.exact
    assert result.n_matvecs == N
    close(result.nodes, values.unsqueeze(0))
    for p in range(4):
        moment, stderr = result.moment(p)
        close(moment, (values**p).mean())
        assert stderr == 0
    grid = torch.linspace(-4, 30, 50).double()
    share, stderr = result.cumulative(grid)
    close(share, (values <= grid.unsqueeze(1) + 1e-9).double().mean(1))
    assert not stderr.any()


def test_the_smoothed_density_is_a_mixture():
    values = torch.tensor([-1.0, 0.5, 2.0]).double()
    result = spectral_density(operator(values))
    grid, width = torch.linspace(-3, 4, 9).double(), 0.7
    mixture = torch.distributions.Normal(values, width)
    expected = mixture.log_prob(grid.unsqueeze(1)).exp().mean(1)
    close(result.density(grid, width)[0], expected)


@pytest.mark.parametrize("name", ["outliers", "decaying", "indefinite", "clustered"])
def test_moments_in_units_of_their_errors(name):
    values = torch.tensor(SPECTRA[name]).double()
    z = []
    A = Bare(SPECTRA[name])
    for seed in range(30):
        result = quadrature(A, rng=seed, n_probes=20, n_steps=5)
        for p in (1, 2, 3):
            moment, stderr = result.moment(p)
            z.append((moment - (values**p).mean()) / stderr)
    z = torch.stack(z)
    assert (z.abs() <= 2).double().mean() > 0.85
    assert z.mean().abs() < 4 / 30**0.5


@pytest.mark.parametrize("n_steps", [2, 5])
def test_moments_of_one_probe_are_exact(n_steps):
    """A Gauss quadrature of n nodes integrates polynomials of degree 2n - 1."""
    A, generator = Bare(SPECTRA["indefinite"]), rng(3)
    result = quadrature(A, n_probes=2, n_steps=n_steps, rng=3)
    probes = [2.0 * torch.randint(0, 2, (N,), generator=generator) - 1 for _ in "ab"]
    for z, nodes, weights in zip(probes, result.nodes, result.weights, strict=True):
        power = z.double()
        for p in range(2 * n_steps):
            close((weights * nodes**p).sum(), z.double() @ power / N)
            power = A.matrix @ power


@pytest.mark.parametrize("function", [torch.abs, torch.square, torch.exp])
def test_traces_of_functions(function):
    values = torch.tensor(SPECTRA["indefinite"]).double()
    result = quadrature(Bare(SPECTRA["indefinite"]))
    value, stderr = result.mean(function)
    assert (value - function(values).mean()).abs() < 4 * stderr + 1e-3
    assert stderr < 0.05 * value


@pytest.mark.parametrize("name", ["outliers", "decaying", "indefinite", "clustered"])
def test_cumulative_against_all_eigenvalues(name):
    values = torch.tensor(SPECTRA[name]).double()
    result = quadrature(Bare(SPECTRA[name]))
    grid = torch.linspace(float(values.min()) - 0.1, float(values.max()) + 0.1, 200)
    share, stderr = result.cumulative(grid)
    truth = (values <= grid.unsqueeze(1)).double().mean(1)
    height = result.weights.amax(1).mean() if name != "clustered" else 0
    assert ((share - truth).abs() <= 4.5 * stderr + height).all()
    assert (share.diff() >= -1e-12).all()


def test_large_matrix_by_quadrature():
    values = torch.cat([torch.arange(20.0, 10, -1), torch.linspace(-1, 1, 2990)])
    A = DiagonalOperator(values)
    result = spectral_density(A, n_probes=4, n_steps=60, rng=0)
    assert not result.exact
    assert result.n_matvecs == A.n_matvecs == 240
    assert result.nodes.shape == result.weights.shape == (4, 60)
    assert float(result.cumulative(torch.tensor([5.0]))[0]) == pytest.approx(
        2990 / 3000, abs=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_krylov_space_that_ends_is_exact(dtype):
    values = torch.tensor([5.0] * 100 + [1.0] * 200 + [0.0] * 100, dtype=dtype)
    A = DiagonalOperator(values)
    result = quadrature(A, n_probes=3)
    assert result.n_matvecs == 3 * 8  # looked at every eighth step
    share, stderr = result.cumulative(torch.tensor([-0.5, 0.5, 2, 6]))
    close(share, torch.tensor([0, 0.25, 0.75, 1]).double(), atol=1e-5, rtol=0)
    # That of a matrix of these eigenvalues in any basis: √(2 · 0.75 · 0.25 / 400).
    close(stderr, torch.tensor([0, 1, 1, 0]).double() * 0.00094**0.5, atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_probes", [2, 4, 10])
def test_two_standard_errors_hold_what_they_should_with_an_outlier(n_probes):
    """The probes' own spread holds .73 with 4 of them and .84 with 10."""
    size, n_seeds = 60, 200
    values = torch.linspace(0, 0.01, size, dtype=torch.float64)
    values[-1] = 10.0
    Q, _ = torch.linalg.qr(randn(size, size))
    A = DenseOperator(Q * values @ Q.T)
    hits = torch.zeros(2)
    for seed in range(n_seeds):
        result = quadrature(A, n_probes=n_probes, n_steps=8, rng=seed)
        for i, p in enumerate((1, 2)):
            moment, stderr = result.moment(p)
            hits[i] += (moment - (values**p).mean()).abs() <= 2 * stderr
    # 0.95 less three standard errors of a share of 200.
    assert (hits / n_seeds >= 0.95 - 3 * (0.95 * 0.05 / n_seeds) ** 0.5).all()


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_multiples_of_the_identity(scale):
    A = ScaledIdentityOperator(torch.tensor(scale), 3000)
    result = spectral_density(A, rng=0)
    assert float(result.moment(3)[0]) == pytest.approx(scale**3)
    assert float(result.cumulative(torch.tensor([scale + 1e-3]))[0]) == 1


@pytest.mark.parametrize("scale", [2.0**-600, 2.0**600])
def test_errors_of_numbers_whose_squares_no_float_holds(scale):
    """Both scale with the operator: an error of 1e-181 is not 0, nor 1e181 NaN."""
    values = torch.linspace(1, 2, 300, dtype=torch.float64)
    one = quadrature(DiagonalOperator(values), n_probes=4, rng=0)
    other = quadrature(DiagonalOperator(scale * values), n_probes=4, rng=0)
    for found, right in zip(other.moment(1), one.moment(1), strict=True):
        assert float(found) == pytest.approx(float(scale * right), rel=1e-12)
    grid = torch.tensor([1.2, 1.7], dtype=torch.float64)
    pairs = zip(
        other.density(scale * grid, 0.1 * scale), one.density(grid, 0.1), strict=True
    )
    for found, right in pairs:
        assert torch.allclose(found * scale, right, rtol=1e-12, atol=0)
        assert (right > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_wishart_against_marchenko_pastur(seed):
    A = wishart(seed, n=2 * N)
    product = FunctionOperator(lambda v: A @ v, N, dtype=torch.float64)
    result = quadrature(product, rng=seed)
    high, low = (1 + 0.5**0.5) ** 2, (1 - 0.5**0.5) ** 2
    x = torch.linspace(low, high, 4001)[1:-1].double()
    # The law's density with ratio 1/2 of columns to rows.
    p = ((high - x) * (x - low)).sqrt() / (torch.pi * x)
    law = torch.cumulative_trapezoid(p, x)
    assert (result.cumulative(x[1:])[0] - law).abs().max() < 0.05


def test_steps_beyond_the_size():
    values = torch.linspace(-1, 1, 12)
    result = quadrature(Bare(values), n_steps=80)
    close(result.nodes, values.double().expand(10, 12))
    assert result.n_matvecs == 120


def test_seeds():
    A = Bare(SPECTRA["outliers"])

    def run(seed):
        return quadrature(A, rng=seed, n_probes=2, n_steps=5).nodes

    assert torch.equal(run(0), run(0))
    assert torch.equal(run(0), run(rng(0)))
    assert not torch.equal(run(0), run(1))
    assert not torch.equal(run(None), run(None))


def test_an_interrupt_returns_nothing(capsys):
    count = 0

    def product(v):
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        return torch.linspace(0, 1, 3000) * v

    with pytest.raises(KeyboardInterrupt):
        spectral_density(FunctionOperator(product, 3000), rng=0, verbose=True)
    assert "spectral density" in capsys.readouterr().err


def test_a_product_that_is_not_finite():
    A = FunctionOperator(lambda v: v / 0, 3000)
    with pytest.raises(torch.linalg.LinAlgError, match=r"must be finite. Got NaN"):
        spectral_density(A, n_probes=2, n_steps=9, rng=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_probes": 1}, "n_probes must be an integer of at least 2. Got 1"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1. Got 0"),
        ({"method": "kpm"}, "Unknown method 'kpm'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        spectral_density(operator([1.0]), **options)


def test_bad_input_of_the_result():
    result = spectral_density(operator([1.0, 2.0]))
    with pytest.raises(
        ValueError, match=r"width must be a finite number above 0. Got 0"
    ):
        result.density(torch.zeros(1), 0)
    with pytest.raises(ValueError, match=r"p must be an integer of at least 0. Got -1"):
        result.moment(-1)


def test_a_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"spectral_density takes one matrix. Got several"
    ):
        spectral_density(DenseOperator(randn(2, 3, 3)))


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ([-1.0, 3.0], 0.04),
        ([-2.0, -2.0], 0.02),
        ([0.0, 0.0], 0.01),
        ([1e-9] * 2, 1e-11),
    ],
)
def test_the_default_width(values, width):
    """A hundredth of the range, or of the size of values that are all equal."""
    values = torch.tensor(values, dtype=torch.float64)
    result = spectral_density(DiagonalOperator(values))
    assert result.default_width == pytest.approx(width)
    at = values[:1]
    share = 1.0 if values[0] == values[1] else 0.5
    expected = share / (width * (2 * math.pi) ** 0.5)
    assert float(result.density(at)[0]) == pytest.approx(expected)


def test_auto_is_exact_up_to_as_many_products_as_the_estimate_takes():
    values, n = torch.arange(24, dtype=torch.float64), 24
    as_many = spectral_density(Bare(values), n_probes=2, n_steps=n // 2)
    assert as_many.exact
    assert as_many.n_matvecs == n
    close(as_many.nodes.flatten(), values)
    fewer = spectral_density(Bare(values), n_probes=2, n_steps=n // 2 - 1, rng=0)
    assert not fewer.exact
    assert fewer.n_matvecs == n - 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_krylov_space_ends_no_eigenvalue_is_made_up(dtype):
    values = torch.tensor([100.0] * 1500 + [101.0] * 1500, dtype=dtype)
    result = quadrature(DiagonalOperator(values), n_steps=20)
    assert 99.9 < result.nodes.min() <= result.nodes.max() < 101.1
    assert result.default_width == pytest.approx(0.01, rel=1e-2)
    for function in (torch.log, torch.reciprocal):
        value, stderr = result.mean(function)
        expected = function(values.double()).mean()
        assert abs(value - expected) < 4 * stderr + 1e-6 * abs(expected)
