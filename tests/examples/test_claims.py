"""Cited claims: each is whole, and what is no claim is refused."""

import dataclasses
import math

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


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_a_script_has_a_claim(path, claim):
    names = {"__name__": "a test", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), names)
    found = names["CLAIM"]
    assert isinstance(found, claim.Claim)
    assert found.title in path.read_text()
    # What is compared is what is run.
    labels = {name for i in found.inequalities for name in (i.left, i.right)}
    assert {name.removesuffix(", batch") for name in labels} <= {*names["LAWS"], "0"}


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
