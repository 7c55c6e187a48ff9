"""Cited claims: each is whole, and what is no claim is refused."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from scipy import stats

from .conftest import FOLDER

CLAIMS = sorted((FOLDER / "claims").glob("plot_*.py"))


@pytest.fixture
def claim(monkeypatch):
    """Return the file that says what a claim is."""
    monkeypatch.syspath_prepend(str(FOLDER / "claims"))
    import _claim

    return _claim


def whole(claim, **changes):
    parts = {
        "title": "t",
        "says": "s",
        "sources": (claim.Source("arXiv 1", "abstract"),),
        "inequalities": (claim.Inequality("a", "x", "y", -0.1, 0.1),),
        "seeds": tuple(range(8)),
        "tuned_on": (8, 9),
        "protocol": "p",
        "objection": "o",
        "would_change": "w",
    }
    return claim.Claim(**(parts | changes))


@pytest.fixture
def page(claim):
    """Return the file that makes the page, which loads every claim."""
    before = set(sys.modules)
    import page

    yield page
    for name in set(sys.modules) - before:
        if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_every_claim_is_on_the_page(page):
    assert {path.stem for path in CLAIMS} == set(page.SCRIPTS)
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_every_result_is_of_a_claim(page):
    names = {name for _, name, _, _ in page.trials()}
    assert {path.stem for path in page.RESULTS.glob("*.json")} <= names


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_a_stored_verdict_follows_from_its_outcomes(path, page):
    for script, name, trial, _ in page.trials():
        stored = page.RESULTS / f"{name}.json"
        if script != path.stem or not stored.exists():
            continue
        result = json.loads(stored.read_text())
        assert result["full"]
        assert tuple(result["seeds"]) == trial.claim.seeds
        assert result["settings"] == json.loads(json.dumps(trial.full))
        for inequality, row in zip(
            trial.claim.inequalities, result["judged"], strict=True
        ):
            values = np.array(result["outcomes"][inequality.left], dtype=float)
            if inequality.right != "0":
                values = values - np.array(
                    result["outcomes"][inequality.right], dtype=float
                )
            values = values[np.isfinite(values)]
            assert (row["n"], row["lost"]) == (
                len(values),
                len(trial.claim.seeds) - len(values),
            )
            if len(values) < 2:
                assert (row["low"], row["high"], row["verdict"]) == (
                    None,
                    None,
                    "neither",
                )
                continue
            t = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            stored_digits = 1e-5 * np.abs(values).max()  # six, of each outcome
            assert (row["low"], row["high"]) == pytest.approx(
                tuple(t), rel=1e-4, abs=stored_digits
            )
            inside = inequality.low <= t.low and t.high <= inequality.high
            outside = t.high < inequality.low or t.low > inequality.high
            expected = "supported" if inside else "refuted" if outside else "neither"
            assert row["verdict"] == expected
        # The outcomes are those of the units.
        for place, seed in enumerate(result["seeds"]):
            units = {u["label"]: u for u in result["units"] if u["seed"] == seed}
            again = trial.outcomes(units)
            for label, value in again.items():
                kept = result["outcomes"][label][place]
                if kept is None:
                    assert value is None or not math.isfinite(value)
                else:
                    assert kept == pytest.approx(value, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: {"inequalities": ()}, "needs inequalities"),
        (lambda c: {"sources": ()}, "needs sources"),
        (lambda c: {"seeds": ()}, "needs seeds"),
        (lambda c: {"objection": ""}, "needs objection"),
        (lambda c: {"sources": (c.Source("arXiv 1", "seen"),)}, "what was seen of it"),
        (lambda c: {"inequalities": (c.Inequality("a", "x"),)}, "needs a bound"),
        (lambda c: {"seeds": (1, 2, 3, 4, 5, 6, 7, 7)}, "8 seeds or more .* Got 7"),
        (lambda c: {"seeds": tuple(range(5)), "network": "cnn"}, "6 seeds .* Got 5"),
        (lambda c: {"tuned_on": (7, 8)}, r"none of those of pilots.* Got \[7\]"),
        (lambda c: {"network": "large"}, "network must be of"),
    ],
)
def test_what_is_no_claim_is_refused(change, sentence, claim):
    assert whole(claim)
    with pytest.raises(ValueError, match=sentence):
        whole(claim, **change(claim))


def test_the_interval_decides(claim):
    left, right = [0.1, 0.2, 0.3, 0.2], [0.0, 0.1, 0.1, 0.2]
    differences = [a - b for a, b in zip(left, right, strict=True)]
    t = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    wide = claim.Inequality("w", "x", "y", t.low - 0.01, t.high + 0.01)
    verdict, found = wide.judge(left, right)
    assert verdict == "supported"
    assert (found.low, found.high) == pytest.approx((t.low, t.high))
    for bounds, expected in [
        ((t.low + 0.01, math.inf), "neither"),
        ((t.high + 0.01, math.inf), "refuted"),
        ((-math.inf, t.low - 0.01), "refuted"),
    ]:
        one = dataclasses.replace(wide, low=bounds[0], high=bounds[1])
        assert one.judge(left, right)[0] == expected
    alone = claim.Inequality("a", "x", low=0.0)
    assert alone.judge([1.0, 1.1, 0.9])[0] == "supported"


def test_both_bounds_must_be_rejected(claim):
    left = [0.1, 0.2, 0.3, 0.2]
    within = claim.Inequality("w", "x", low=0.0, high=0.5)
    above = stats.ttest_1samp(left, 0.0, alternative="greater").pvalue
    below = stats.ttest_1samp(left, 0.5, alternative="less").pvalue
    assert within.p_value(left) == pytest.approx(max(above, below))
    only = claim.Inequality("w", "x", "y", low=0.0)
    assert only.p_value([0.2, 0.4, 0.7], [0.1, 0.2, 0.3]) == pytest.approx(
        stats.ttest_1samp([0.1, 0.2, 0.4], 0.0, alternative="greater").pvalue
    )


def test_runs_that_diverged_are_counted(claim):
    found = whole(claim, inequalities=(claim.Inequality("a", "x", "y", low=0.0),))
    (row,) = claim.judged(found, {"x": [1.0, 2.0, None, 4.0], "y": [0.5, 0.5, 0, 1]})
    assert (row["n"], row["lost"], row["verdict"]) == (3, 1, "neither")
    assert row["p"] == row["p_holm"]


def test_one_pair_gives_no_interval(claim):
    found = whole(claim, inequalities=(claim.Inequality("a", "x", low=0.0),))
    (row,) = claim.judged(found, {"x": [1.0, None, None]})
    assert (row["n"], row["lost"], row["verdict"]) == (1, 2, "neither")
    assert math.isnan(row["p"])
    assert math.isnan(row["low"])
