"""Two processes give what one gives, and both have the same bits."""

import pytest

from flatmin.analysis import _counted_risk

from ._launch import launch
from ._quantities import words


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    said = launch("_quantities", tmp_path_factory.mktemp("quantities"))
    for code, errors, found in said:
        assert code == 0, errors
        assert found
    return [found for _, _, found in said]


def test_every_quantity_is_that_of_one_process(ranks):
    # float32 where it is asked for.
    limits = {name: 1e-6 if name.endswith(": to") else 1e-11 for name in ranks[0]}
    limits |= {name: 1e-6 for name in ranks[0] if name.startswith("finite differ")}
    far = {k: off for k, (off, _) in ranks[0].items() if not off <= limits[k]}
    assert not far


def test_all_ranks_have_the_same_bits(ranks):
    first, second = ranks
    assert list(first) == list(second)
    assert len(first) > 300
    assert [k for k in first if first[k][1] != second[k][1]] == []


def test_every_word_is_asked_for():
    known = {*_counted_risk._COSTS, *_counted_risk._PRODUCTS}
    # Statistics of all examples in one chunk, which several processes do not share.
    assert known - set(words(11)) == {"batch_statistics"}
