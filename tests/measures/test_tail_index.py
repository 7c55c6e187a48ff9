"""The tail index: laws whose α is known, and the released recipe by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from flatmin.measures import tail_index


def draws(law, T=4000, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(law.rvs(size=(T, d), random_state=rng))


STABLE = {
    2.0: stats.norm(),
    1.5: stats.levy_stable(1.5, 0),
    1.0: stats.cauchy(),
}


@pytest.mark.parametrize("alpha", STABLE)
@pytest.mark.parametrize("K", [4, 50])
def test_a_stable_law_has_its_index_for_every_number_of_summands(alpha, K):
    noise = draws(STABLE[alpha])
    found = tail_index(noise, K)
    assert (found.n_summands, found.n_blocks, found.left_out) == (K, 4000 // K, 0)
    assert abs(float(found) - alpha) < 4 * found.overall.stderr
    assert 0 < found.overall.stderr < 0.1
    assert ((found.alpha - alpha).abs() < 5 * found.stderr).all()


def test_the_error_is_honest():
    # Of 1/α̂, which is unbiased; 80 blocks.
    found = tail_index(draws(stats.norm(), d=200))
    scores = (1 / found.alpha - 0.5) * found.alpha.square() / found.stderr
    assert 0.85 < scores.square().mean().sqrt() < 1.2


def test_a_finite_variance_shows_in_many_summands():
    heavy, stable = draws(stats.t(3), d=60), draws(STABLE[1.5], d=60)
    found = [tail_index(heavy, K).overall for K in (2, 16, 200)]
    for less, more in pairwise(found):
        assert more.value - less.value > 3 * torch.hypot(more.stderr, less.stderr)
    few, many = (tail_index(stable, K).overall for K in (2, 200))
    assert abs(many.value - few.value) < 3 * torch.hypot(many.stderr, few.stderr)


def released(rows):
    """Return α̂ as the released code has it, in NumPy."""
    X = rows.ravel()
    K1 = max(k for k in range(1, math.isqrt(len(X)) + 1) if len(X) % k == 0)
    eps = np.spacing(1)
    Y = np.abs(X.reshape(-1, K1).sum(1))
    mean = np.log(Y + eps).mean() - np.log(np.abs(X) + eps).mean()
    return math.log(K1) / mean


def test_the_released_recipe_and_what_it_is_blind_to():
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 1e-4, 60)
    gaussian = rng.standard_normal((400, 60)) * scales
    gaussian[:, 5] = 0  # a dead input
    found = tail_index(torch.from_numpy(gaussian), pooled=True)
    assert float(found) == pytest.approx(released(gaussian), rel=1e-12)
    assert float(found) < 1.5
    own = tail_index(torch.from_numpy(gaussian))
    assert own.left_out == 1
    assert own.alpha.isnan().nonzero().flatten().tolist() == [5]
    assert abs(float(own) - 2) < 4 * own.overall.stderr
    equal = torch.from_numpy(rng.standard_normal((400, 60)))
    blind = tail_index(equal, pooled=True)
    assert abs(float(blind) - 2) < 4 * blind.overall.stderr


def test_the_last_draws_that_fill_no_block_are_left_out():
    noise = draws(stats.norm(), T=203, d=2)
    shorter = tail_index(noise[:200], 10)
    assert tail_index(noise, 10).alpha.tolist() == shorter.alpha.tolist()


@pytest.mark.parametrize(
    ("noise", "options", "sentence"),
    [
        (torch.zeros(8, 2), {"n_summands": 2}, "is exactly 0 in each of 2 coordinates"),
        (torch.ones(2, 2, 2), {}, r"shape \(T,\) or \(T, d\).*Got \(2, 2, 2\)"),
        (torch.tensor([1.0, torch.inf, 1, 1]), {}, "must be finite"),
        (torch.ones(3), {}, "at least 4 draws. Got 3"),
        (torch.ones(7), {}, "Got 7 draws, a prime number"),
        (torch.ones(8), {"n_summands": 1}, "n_summands must be .* Got 1"),
        (torch.ones(8), {"n_summands": 5}, "n_summands must be .*half.* Got 5"),
        (
            torch.tensor([1.0, -0.9] * 8),
            {"n_summands": 2},
            "the draws of a block cancel",
        ),
        (torch.ones(8), {"pooled": 1}, "pooled must be"),
    ],
)
def test_what_does_not_fit(noise, options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        tail_index(noise, **options)
