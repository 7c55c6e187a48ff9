"""Estimators, analyzers and the scorer in two processes."""

import pytest

from ._launch import launch

REFUSED = {
    "memory": ("ValueError", "Got memory='x'"),
    "the same Subset": ("ValueError", "Got the same one on all ranks"),
    "labels of two kinds": ("ValueError", "y must be of one kind on all ranks"),
    "another part": ("ValueError", "X and y"),
    "weights of all": ("ValueError", "sample_weight must have shape"),
    "nothing to hold out": ("ValueError", "X_val"),
    "NaN on one rank": ("ValueError", "NaN"),
    "an analyzer alone": ("ValueError", "distributed=True; pass that"),
    "all is well": ("nothing", ""),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    said = launch("_models", tmp_path_factory.mktemp("models"))
    for code, errors, _ in said:
        assert code == 0, errors
    return said


def test_every_number_is_that_of_one_process(ranks):
    first = ranks[0][2]["numbers"]
    assert len(first) > 25
    assert {name: off for name, (off, _) in first.items() if not off < 1e-10} == {}


def test_all_ranks_have_the_same_bits(ranks):
    first, second = (found["numbers"] for _, _, found in ranks)
    assert [name for name in first if first[name][1] != second[name][1]] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(ranks, name):
    kind, part = REFUSED[name]
    for _, _, found in ranks:
        got, message, _ = found["refusals"][name]
        assert (got, part in message) == (kind, True), message


def test_the_first_rank_alone_shows_progress(ranks):
    bars = [errors.split("<progress>")[1].split("</")[0] for _, errors, _ in ranks]
    assert "6/6" in bars[0]
    assert bars[1] == ""
