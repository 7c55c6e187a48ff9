"""What goes wrong on one rank ends all of them, with its message, and at once."""

import pytest

from ._launch import launch

# The kind and a part of the message, on both ranks or on each.
EXPECTED = {
    "no process group": ("RuntimeError", "init_process_group"),
    "a rank raises": ("OSError", "the disk of example 5 is gone"),
    "and again": ("OSError", "the disk of example 5 is gone"),
    "it goes on": ("nothing", ""),
    "a wrong θ on one rank": ("ValueError", "θ must have shape"),
    "another θ": ("RuntimeError", "at the same θ"),
    "another v": ("RuntimeError", "at the same θ"),
    "another subset": ("RuntimeError", "ask for subset at the same θ"),
    "a θ that does not fit": ("ValueError", "θ must have shape"),
    "another seed": ("RuntimeError", "give all ranks one seed"),
    "another word": ("RuntimeError", "the same words of a risk in the same order"),
    "not finite": ("FloatingPointError", "must be finite"),
    "all is well": ("nothing", ""),
    "another module": ("RuntimeError", "start them from the same parameters"),
    "other data": ("RuntimeError", "the same arrays"),
    "another N": ("RuntimeError", "the same arrays"),
    "bad targets on one rank": ("ValueError", "labels 0 to 2"),
    "the same Subset": ("ValueError", "Got the same one on all ranks"),
    "an empty Subset": ("ValueError", "at least one example"),
    "batch_norm": ("ValueError", "2 ranks share them"),
    "no flag": ("nothing", ""),
    "no bool": ("TypeError", "distributed must be True or False"),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    said = launch("_failures", tmp_path_factory.mktemp("failures"))
    assert [code for code, _, _ in said] == [0, 3], "\n".join(e for _, e, _ in said)
    return [found for _, _, found in said]


@pytest.mark.parametrize("name", EXPECTED)
def test_all_ranks_raise_alike(ranks, name):
    kind, part = EXPECTED[name]
    for found in ranks:
        got, message, seconds = found[name]
        assert (got, part in message) == (kind, True), message
        assert seconds < 90  # not the time-out


def test_another_rank_says_who_raised(ranks):
    assert ranks[0]["a rank raises"][1].startswith("rank 1 raised: ")
    assert not ranks[1]["a rank raises"][1].startswith("rank")


def test_a_rank_that_dies_is_told_of(ranks):
    got, message, seconds = ranks[0]["a rank dies"]
    assert got == "RuntimeError"
    assert "Another rank has ended" in message
    assert "time-out" in message
    assert seconds < 90
