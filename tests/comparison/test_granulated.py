"""Granulated τ against loops over pairs, and its interval against known spreads."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatmin.comparison import granulated_tau

FACTORS = ["lr", "width"]


def table(n_seeds=6, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for s, lr, width in itertools.product(range(n_seeds), (0.1, 0.2, 0.5), (4, 8)):
        gap = lr + width / 10 + noise * rng.normal()
        sharp = gap + rng.normal() + 0.3 * s
        rows.append({"seed": s, "lr": lr, "width": width, "gap": gap, "sharp": sharp})
    return pd.DataFrame(rows)


def by_hand(rows, factor, others):
    """Return the mean over strata of τ-a, by loops."""
    taus = []
    for _, stratum in rows.groupby(others):
        pairs = list(itertools.combinations(stratum.to_dict("records"), 2))
        signs = [
            np.sign(a["sharp"] - b["sharp"]) * np.sign(a["gap"] - b["gap"])
            for a, b in pairs
        ]
        taus.append(np.mean(signs))
    return np.mean(taus), min(taus), len(taus)


def test_against_loops():
    rows = table()
    names = [*FACTORS, "seed"]
    found = granulated_tau(rows, "sharp", "gap", factors=names)
    for factor in names:
        tau, lowest, n = by_hand(rows, factor, [x for x in names if x != factor])
        got = found.by_factor.loc[factor]
        assert got["tau"] == pytest.approx(tau)
        assert (got["lowest"], got["n_strata"]) == (pytest.approx(lowest), n)
        assert got["low"] <= got["tau"] <= got["high"]
    assert float(found) == pytest.approx(found.by_factor["tau"].mean())
    assert found.n_seeds == 6
    pd.testing.assert_frame_equal(found.to_frame(), found.by_factor)


def test_a_stratum_is_kendalls_tau():
    rows = table(n_seeds=2)
    rows = rows[rows["width"] == 4]
    found = granulated_tau(rows, "sharp", "gap", factors=["lr"])
    taus = [
        stats.kendalltau(part["sharp"], part["gap"]).statistic
        for _, part in rows.groupby("seed")
    ]
    assert float(found) == pytest.approx(np.mean(taus))


def resampled(rows, chosen, factor, others):
    """Return τ of a resample by copying the seeds, whose copies are no pairs."""
    copies = [
        rows[rows["seed"] == s].assign(copy=i, origin=s) for i, s in enumerate(chosen)
    ]
    taus = []
    keys = [x if x != "seed" else "copy" for x in others]
    for _, stratum in pd.concat(copies).groupby(keys):
        pairs = itertools.combinations(stratum.to_dict("records"), 2)
        signs = [
            np.sign(a["sharp"] - b["sharp"]) * np.sign(a["gap"] - b["gap"])
            for a, b in pairs
            if factor != "seed" or a["origin"] != b["origin"]
        ]
        taus.append(np.mean(signs))
    return np.mean(taus)


@pytest.mark.parametrize("factor", ["lr", "seed"])
def test_the_interval_is_that_of_resampled_seeds(factor):
    rows, names = table(n_seeds=4), [*FACTORS, "seed"]
    others = [x for x in names if x != factor]
    found = granulated_tau(
        rows, "sharp", "gap", factors=names, n_resamples=4000, random_state=1
    )
    rng = np.random.default_rng(0)
    drawn = []
    while len(drawn) < 300:
        chosen = rng.integers(4, size=4)
        if len(set(chosen)) > 1:
            drawn.append(resampled(rows, chosen, factor, others))
    low, high = np.quantile(drawn, [0.025, 0.975])
    got = found.by_factor.loc[factor]
    assert got["low"] == pytest.approx(low, abs=0.12)
    assert got["high"] == pytest.approx(high, abs=0.12)


def test_a_factor_that_moves_both_does_not_count_for_the_others():
    # Sharpness and gap follow lr, and nothing else of sharpness says of the gap.
    rng = np.random.default_rng(0)
    rows = table(noise=0.0)
    rows["gap"] = 100 * rows["lr"] + rng.normal(size=len(rows))
    rows["sharp"] = 100 * rows["lr"] + rng.normal(size=len(rows))
    assert stats.kendalltau(rows["sharp"], rows["gap"]).statistic > 0.6
    found = granulated_tau(rows, "sharp", "gap", factors=FACTORS)
    assert found.by_factor.loc["lr", "tau"] == 1
    width = found.by_factor.loc["width"]
    assert width["low"] < 0 < width["high"]


def test_the_seed_of_the_resamples_decides():
    rows = table()
    one, same, other = (
        granulated_tau(rows, "sharp", "gap", factors=FACTORS, random_state=s)
        for s in (0, 0, 1)
    )
    assert (one.low, one.high) == (same.low, same.high)
    assert (one.low, one.high) != (other.low, other.high)
    assert one.value == other.value


@pytest.mark.parametrize("missing", [np.nan, None])
def test_what_a_factor_has_not_is_a_value_of_its_own(missing):
    rows = table().rename(columns={"width": "decay"})
    named = granulated_tau(rows, "sharp", "gap", factors=["lr", "decay"])
    rows["decay"] = rows["decay"].astype(object).where(rows["decay"] == 4, missing)
    found = granulated_tau(rows, "sharp", "gap", factors=["lr", "decay"])
    pd.testing.assert_frame_equal(found.to_frame(), named.to_frame())


ROWS = table(n_seeds=2)


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (ROWS.to_dict(), {}, "table must be a DataFrame. Got dict"),
        (ROWS, {"factors": []}, "must name a column or more"),
        (
            ROWS,
            {"factors": ["lr", "lr", "width"]},
            "Got 'lr' 2 times; leave the others",
        ),
        (ROWS, {"factors": ["depth"]}, "Got 'depth'; there are 'seed', 'lr'"),
        (ROWS.assign(gap=np.nan), {}, "must be finite. Got 12 rows"),
        (ROWS.assign(seed=np.nan), {}, "name the seed of each row. Got 12 rows"),
        (ROWS, {"factors": ["lr"]}, "one row for each combination .* Got 6 more"),
        (ROWS[ROWS["seed"] == 0], {}, "needs two seeds or more .* Got 1"),
        (ROWS[ROWS["lr"] == 0.1], {}, "The factor 'lr' must vary"),
        (ROWS, {"n_resamples": 0}, "n_resamples must be .* Got 0"),
        (ROWS, {"confidence": 2.0}, "confidence must be .* Got 2.0"),
    ],
)
def test_what_does_not_fit(rows, options, sentence):
    options = {"factors": FACTORS, **options}
    with pytest.raises((ValueError, TypeError), match=sentence):
        granulated_tau(rows, "sharp", "gap", **options)
