"""The paper's two basins: its formulas, its numbers, and data of each chain's own."""

import math

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from flatmin.risk import TwoBasinsRisk

close = torch.testing.assert_close


def randn(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def paper_loss(w, x, angle):
    """Appendix B as it is printed, one example."""
    s1, s2 = w[0] - 1 - x[0], w[1] - 1 - x[1]
    c, s = math.cos(angle), math.sin(angle)
    sharp = 10 * (s1 * c - s2 * s) ** 2 + 100 * (s1 * c + s2 * s) ** 2
    return torch.minimum(sharp, (w[0] - x[0] + 1) ** 2 + (w[1] - x[1] + 1) ** 2)


# In the sharp basin, in the flat one, and between them, where examples disagree.
POINTS = [[1.0, 1.0], [-0.8, -1.3], [0.75, 0.9]]


@pytest.fixture(params=["text", "released_code"])
def risk(request):
    return TwoBasinsRisk.from_paper(request.param, n_examples=30)


def losses(risk, w):
    return torch.stack([paper_loss(w, x, risk.angle) for x in risk.offsets])


def test_between_the_basins_examples_disagree(risk):
    share = risk._share_in_sharp(torch.tensor(POINTS, dtype=torch.float64)).flatten()
    assert share[0] == 1
    assert share[1] == 0
    assert 0 < share[2] < 1


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_the_printed_formula_and_its_derivatives(risk, point):
    w = torch.tensor(point, dtype=torch.float64)
    close(risk.example_losses(w), losses(risk, w))
    rows = jacobian(lambda w: losses(risk, w), w)
    close(risk.example_gradients(w), rows)
    value, gradient = risk.value_and_gradient(w)
    close(value, losses(risk, w).mean())
    close(gradient, rows.mean(0))
    close(risk.hessian(w), hessian(lambda w: losses(risk, w).mean(), w))
    close(risk.gauss_newton(w), risk.hessian(w))


@pytest.mark.parametrize(
    ("variant", "values"),
    [("text", [14.6, 205.4]), ("matched", [14.6, 205.4]), ("released_code", [20, 200])],
)
def test_the_stated_curvatures(variant, values):
    risk = TwoBasinsRisk.from_paper(variant)
    both = torch.stack([risk.sharp_minimum, risk.flat_minimum])
    found = torch.linalg.eigvalsh(risk.hessian(both))
    expected = torch.tensor([values, [2.0, 2.0]], dtype=torch.float64)
    close(found, expected, atol=0.05, rtol=0)


def test_the_data_of_each_variant():
    """Covariances of 100,000 xᵢ, within 5 standard errors of a variance."""
    tolerance = 5 * (2 / 100_000) ** 0.5
    text = TwoBasinsRisk.from_paper("text", n_examples=100_000).offsets
    close(text.T.cov() / 0.01, torch.eye(2).double(), atol=tolerance, rtol=0)
    released = TwoBasinsRisk.from_paper("released_code", n_examples=100_000)
    # Σ = 4 A Cov(x) A is then .02 H: (.02) 20 = .4 and (.02) 200 = 4.
    at = released.sharp_minimum
    ratio = torch.linalg.solve(released.hessian(at), released.gradient_covariance(at))
    close(ratio / 0.02, torch.eye(2).double(), atol=10 * tolerance, rtol=0)


def test_every_chain_may_have_its_own_data():
    together = TwoBasinsRisk.from_paper("text", chains=(3,), n_examples=7)
    theta = randn(4, 3, 2)
    for i, offsets in enumerate(together.offsets):
        alone = TwoBasinsRisk(offsets, together.angle)
        close(together.value(theta)[:, i], alone.value(theta[:, i]))
        close(together.gradient(theta)[:, i], alone.gradient(theta[:, i]))
        close(together.hessian(theta)[:, i], alone.hessian(theta[:, i]))
        indices = torch.randint(7, (4, 3, 2))
        batch = together.batch_gradient(theta, indices)
        close(batch[:, i], alone.batch_gradient(theta[:, i], indices[:, i]))


def test_the_rule_of_success():
    risk = TwoBasinsRisk.from_paper()
    points = torch.tensor([[-0.6, -0.6], [-0.6, -0.4], [-0.4, -0.6], [math.nan, -1]])
    assert risk.in_flat_basin(points).tolist() == [True, False, False, False]


def test_seeds_and_dtype():
    first, again = TwoBasinsRisk.from_paper(rng=1), TwoBasinsRisk.from_paper(rng=1)
    assert torch.equal(first.offsets, again.offsets)
    assert not torch.equal(first.offsets, TwoBasinsRisk.from_paper(rng=2).offsets)
    single = TwoBasinsRisk.from_paper(rng=1, dtype=torch.float32)
    close(single.offsets, first.offsets.float())
    assert single.gauss_newton_roots(torch.zeros(5, 2)).dtype == torch.float32


def test_bad_input():
    with pytest.raises(ValueError, match=r"Unknown variant 'texts'; did you mean 'te"):
        TwoBasinsRisk.from_paper("texts")
    for shape in [(2,), (3, 3), (0, 2)]:
        with pytest.raises(ValueError, match=r"must have shape \(N, 2\).*Got"):
            TwoBasinsRisk(torch.zeros(shape), 0.0)
