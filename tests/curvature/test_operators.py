"""H, G and Σ as operators against dense oracles, traces and diagonals included."""

import pytest
import torch
from torch import nn

from flatmin.curvature import (
    FisherOperator,
    GGNOperator,
    GradientCovarianceOperator,
    HessianOperator,
    covariance_diagonal,
    covariance_trace,
    ggn_trace,
    hessian_trace,
)
from flatmin.risk import EmpiricalRisk, QuadraticRisk
from flatmin.risk.products import graphs

from ._problems import (
    ANALYTIC,
    CHAINS,
    N,
    empirical,
    oracle,
    randn,
    regression,
    rng,
    saddle,
)

close = torch.testing.assert_close
CHUNKS = [None, 5, 1]


@pytest.fixture(params=ANALYTIC)
def analytic(request):
    return ANALYTIC[request.param]()


@pytest.fixture(params=CHAINS, ids=str)
def chains(request):
    return request.param


def matrix_of(operator):
    """The matrix by single products, whatever shortcut to_dense() takes."""
    eye = torch.eye(operator.shape[-1], dtype=operator.dtype).expand(operator.shape)
    return operator.matmat(eye)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (HessianOperator, lambda o: o.hessian),
        (GGNOperator, lambda o: o.gauss_newton),
        (GradientCovarianceOperator, lambda o: o.covariance),
        (
            lambda r, t: GradientCovarianceOperator(r, t, centered=False),
            lambda o: o.gradients.T @ o.gradients / N,
        ),
    ],
    ids=["H", "G", "covariance", "Fisher"],
)
def test_matrix_and_trace(make, expected, chunk_size):
    risk, theta = empirical(chunk_size=chunk_size)
    operator, matrix = make(risk, theta), expected(oracle())
    close(matrix_of(operator), matrix)
    close(operator.to_dense(), matrix)
    close(operator.trace(), matrix.trace())
    assert operator.shape == (risk.n_params, risk.n_params)


def test_an_operator_stays_at_its_point():
    risk, theta = empirical()
    operators = [
        make(risk, theta)
        for make in (HessianOperator, GGNOperator, GradientCovarianceOperator)
    ]
    before = [A @ theta for A in operators]
    start = theta.clone()
    theta += 1
    risk.gradient(theta)
    for A in operators[:2]:
        A.theta.add_(1)  # which is a copy of its own
    for A, product in zip(operators, before, strict=True):
        assert torch.equal(A @ start, product)


class WordsAlone:
    """A prepared point that has what the protocol asks for, and nothing else."""

    def __init__(self, point):
        self.hvp, self.ggn = point.hvp, point.ggn
        self.directional_derivatives = point.directional_derivatives


def test_a_point_of_ones_own_needs_the_words_of_the_protocol(monkeypatch):
    risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), torch.zeros(1, 2))
    linearize = risk.linearize
    monkeypatch.setattr(
        risk, "linearize", lambda *args, **more: WordsAlone(linearize(*args, **more))
    )
    for make in (HessianOperator, GGNOperator):
        product = make(risk, torch.zeros(2)) @ torch.ones(2)
        assert torch.equal(product, torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize("make", [HessianOperator, GGNOperator, FisherOperator])
def test_a_few_products_take_no_graph(make, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    net, X, y = nn.Linear(2, 3), torch.randn(4, 2), torch.arange(4) % 3
    risk = EmpiricalRisk(net, "cross_entropy", X, y, dtype="float64")
    v, products = torch.ones(9, dtype=torch.float64), []
    for n_products, path in [(1, "reference: few products"), (None, "graph")]:
        operator = make(risk, risk.params(), n_products=n_products)
        products.append(operator.matvec(v))
        assert next(iter(operator._point.paths.values())).startswith(path)
    close(*products)
    with pytest.raises(ValueError, match="n_products must be"):
        make(risk, risk.params(), n_products=0)


def test_chains(analytic, chains):
    theta = randn(*chains, analytic.n_params, seed=3)
    v = randn(*chains, analytic.n_params, seed=4)
    for make, matrix in [
        (HessianOperator, analytic.hessian(theta)),
        (GGNOperator, analytic.gauss_newton(theta)),
        (GradientCovarianceOperator, analytic.gradient_covariance(theta)),
    ]:
        A = make(analytic, theta)
        assert A.shape == matrix.shape
        close(A @ v, (matrix @ v.unsqueeze(-1)).squeeze(-1))
        close(A.to_dense(), matrix)
        close(A.trace(), matrix.diagonal(dim1=-2, dim2=-1).sum(-1))


def test_a_saddle_has_a_hessian():
    A = HessianOperator(saddle(), torch.zeros(3, dtype=torch.float64))
    close(A.to_dense(), torch.diag(torch.tensor([-3.0, 2, 1])).double())


# -- trace and diagonal of Σ ----------------------------------------------------------


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariance_trace_and_diagonal(chunk_size, dtype):
    risk, theta = empirical(chunk_size=chunk_size, dtype=dtype)
    trace, diagonal = covariance_trace(risk, theta), covariance_diagonal(risk, theta)
    assert trace.dtype == diagonal.dtype == torch.float64
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    expected = oracle().covariance
    close(trace.double(), expected.trace(), rtol=rtol, atol=0)
    close(diagonal.double(), expected.diagonal(), rtol=rtol, atol=rtol)


def test_covariance_of_chains(analytic, chains):
    theta = randn(*chains, analytic.n_params, seed=3)
    covariance = analytic.gradient_covariance(theta)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    close(covariance_diagonal(analytic, theta), diagonal)
    close(covariance_trace(analytic, theta), diagonal.sum(-1))


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_no_digits_are_lost_where_examples_agree(chunk_size):
    # Gradients of 1 ± 1e-4 in float32: their squares hold nothing of the difference.
    X = torch.ones(50, 1)
    y = -0.5 + 5e-5 * torch.randn(50, generator=rng())
    risk = EmpiricalRisk(
        nn.Linear(1, 1, bias=False), "squared_error", X, y, chunk_size=chunk_size
    )
    theta = torch.zeros(1)
    exact = (2 * y.double()).var(correction=0)
    close(covariance_trace(risk, theta).double(), exact, rtol=1e-3, atol=0)
    close(covariance_diagonal(risk, theta).double(), exact[None], rtol=1e-3, atol=0)


def test_one_example_has_no_covariance():
    risk = QuadraticRisk(torch.eye(2), torch.ones(1, 2))
    assert covariance_trace(risk, torch.ones(2)) == 0


# -- Tr(H) and Tr(G) ------------------------------------------------------------------


def test_hessian_trace_is_exact_for_small_networks():
    risk, theta = empirical()
    result = hessian_trace(risk, theta, rng=rng())
    close(result.value, oracle().hessian.trace())
    assert result.stderr == 0
    assert result.n_matvecs == risk.n_params


def test_hessian_trace_of_a_larger_network_is_an_estimate():
    risk, theta = empirical(width=30)
    result = hessian_trace(risk, theta, rng=rng(), rtol=0.1)
    assert 0 < result.stderr <= 0.1 * result.value.abs()
    assert (result.value - oracle(30).hessian.trace()).abs() < 5 * result.stderr


def test_hessian_trace_of_chains():
    theta = randn(3, 3)
    result = hessian_trace(saddle(), theta, rng=rng())
    close(result.value, torch.zeros(3).double())


@pytest.mark.parametrize("weights", [None, torch.linspace(0, 3, N)])
def test_ggn_trace_is_exact_for_one_output(weights):
    X, y = randn(N, 3), randn(N, seed=1)
    module = nn.Linear(3, 1).double()
    risk = EmpiricalRisk(module, "squared_error", X, y, sample_weight=weights)
    w = torch.ones(N) if weights is None else weights / weights.mean()
    result = ggn_trace(risk, risk.params(), rng=rng())
    close(result.value, (2 * w.double() * (X.square().sum(1) + 1)).mean())
    assert (result.stderr, result.n_matvecs) == (0, 1)


def test_ggn_trace_of_chains_is_exact(analytic, chains):
    theta = randn(*chains, analytic.n_params)
    result = ggn_trace(analytic, theta, rng=rng())
    close(result.value, analytic.gauss_newton(theta).diagonal(dim1=-2, dim2=-1).sum(-1))
    assert result.stderr.shape == chains
    assert not result.stderr.any()


@pytest.mark.parametrize("seed", range(5))
def test_ggn_trace_without_variance_is_exact(seed):
    # Of a linear model ‖JᵀSz‖² is the same for all signs: the spread is rounding.
    X, y = randn(400, 3), randn(400, 6, seed=1)
    risk = EmpiricalRisk(nn.Linear(3, 6).double(), "squared_error", X / 3, y)
    result = ggn_trace(risk, risk.params(), rng=rng(seed))
    close(result.value, 2 * ((X / 3).square().sum(1) + 1).mean())
    assert result.stderr < 1e-7
    assert result.n_matvecs == 2


def many_outputs():
    """Return the risk of a network of 30 outputs, and Tr(G) by its products."""
    X, y = randn(N, 3), randn(N, 30, seed=1)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 30)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))
    risk = EmpiricalRisk(module, "squared_error", X, y)
    return risk, matrix_of(GGNOperator(risk, risk.params())).trace()


def test_ggn_trace_reaches_its_tolerance():
    risk, exact = many_outputs()
    result = ggn_trace(risk, risk.params(), rng=rng(), rtol=0.05)
    assert 2 < result.n_matvecs < 30
    assert 0 < result.stderr <= 0.05 * result.value
    assert (result.value - exact).abs() < 5 * result.stderr


def test_ggn_trace_is_exact_where_sampling_costs_more():
    risk, exact = many_outputs()
    result = ggn_trace(risk, risk.params(), rng=rng(), rtol=1e-4)
    assert (result.stderr, result.n_matvecs) == (0, 32)
    close(result.value, exact)


def test_ggn_trace_is_not_exact_beyond_its_limit():
    """Two sweeps at random and one for each of 30 outputs are 32."""
    risk, exact = many_outputs()
    result = ggn_trace(risk, risk.params(), rng=rng(), rtol=1e-4, max_sweeps=31)
    assert result.n_matvecs == 31
    assert result.stderr > 0
    assert (result.value - exact).abs() < 5 * result.stderr


def test_ggn_trace_stops_at_the_limit_and_tells():
    risk, _ = many_outputs()
    result = ggn_trace(risk, risk.params(), rng=rng(), rtol=0, max_sweeps=4)
    assert result.n_matvecs == 4
    assert result.stderr > 0


def test_ggn_trace_is_calibrated():
    """The z-scores of 200 seeds have mean 0 and standard deviation near 1."""
    (risk, exact), z = many_outputs(), []
    for seed in range(200):
        result = ggn_trace(risk, risk.params(), rng=rng(seed), rtol=0, max_sweeps=6)
        z.append(float((result.value - exact) / result.stderr))
    z = torch.tensor(z)
    assert z.mean().abs() < 4 / 200**0.5
    assert 0.85 < z.std() < 1.2


def test_ggn_trace_needs_two_sweeps_for_an_error():
    with pytest.raises(
        ValueError, match=r"max_sweeps must be an integer of at least 2. Got 1"
    ):
        ggn_trace(regression(), torch.zeros(4).double(), rng=rng(), max_sweeps=1)


def test_a_fisher_matrix_of_drawn_labels_where_an_output_is_one_number():
    """Outputs of shape (n,), and no axis of outputs: F = (2/N) XᵀX on average."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, X):
            return X @ self.weight

    X = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    risk = EmpiricalRisk(Flat(), "squared_error", X, torch.zeros(3))
    drawn = FisherOperator(risk, risk.params(), n_samples=4000, rng=0).to_dense()
    right = 2 * X.T @ X / 3
    torch.testing.assert_close(drawn, right, rtol=0.1, atol=0.1)
