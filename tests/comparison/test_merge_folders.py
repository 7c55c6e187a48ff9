"""Folders of several machines become one, unless pairs would be torn."""

import shutil

import pytest
from pandas.testing import assert_frame_equal

from flatmin import compare_dynamics
from flatmin.comparison import _unit, merge_checkpoints, merge_comparisons

from ._problems import classifier, digits

X, y, _, _ = digits()


def compare(seeds, folder=None, methods=("gd", "sgd"), **options):
    settings = {"estimator": classifier(), "n_seeds": seeds, "checkpoint_dir": folder}
    return compare_dynamics(list(methods), X, y, **settings | options)


@pytest.fixture
def on_another_machine(monkeypatch):
    """Return a function after which units are said to be run elsewhere."""
    plain = _unit.place

    def elsewhere(device):
        found = plain(device)
        return {**found, "machine": {**found["machine"], "device": "a GPU"}}

    return lambda: monkeypatch.setattr(_unit, "place", elsewhere)


def test_each_machine_has_run_some_seeds(monkeypatch, tmp_path, on_another_machine):
    first = compare([1, 2], tmp_path / "a")
    on_another_machine()
    compare([3], tmp_path / "b")
    units = merge_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert sorted(zip(units["method"], units["seed"], strict=True)) == [
        (method, seed) for method in ("gd", "sgd") for seed in (1, 2, 3)
    ]
    assert units.set_index("seed")["device"].to_dict() == {
        1: "cpu",
        2: "cpu",
        3: "a GPU",
    }
    shutil.rmtree(tmp_path / "a")  # they are copies

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("flatmin.comparison._schedule.run_unit", never)
    monkeypatch.setattr("flatmin.comparison._schedule.run_start", never)
    found = compare([1, 2, 3], tmp_path / "all")
    assert len(found.provenance) == 2
    own = found.table[found.table["seed"] < 3]
    assert_frame_equal(
        own.sort_values(["method", "seed"], kind="stable", ignore_index=True),
        first.table.sort_values(["method", "seed"], kind="stable", ignore_index=True),
    )


def test_it_may_be_merged_into_one_that_is_there_and_again(tmp_path):
    compare([1], tmp_path / "a")
    compare([2], tmp_path / "b")
    for _ in range(2):
        units = merge_checkpoints(tmp_path / "b", tmp_path / "a")
        assert sorted(units["seed"]) == [1, 1, 2, 2]


def test_a_seed_on_two_machines_is_refused(tmp_path, on_another_machine):
    kept = compare([1], tmp_path / "a", ["gd"])
    on_another_machine()
    other = compare([1, 2], tmp_path / "b", ["sgd"])
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        ValueError, match=r"one kind of machine. Seed 1 was run on .*GPU"
    ):
        merge_checkpoints(folders, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    # Where it is done by hand, it is told.
    with pytest.warns(UserWarning, match="Seed 1 was run on .*not paired"):
        merge_comparisons([kept, other])
    with pytest.warns(UserWarning, match="Seed 1 was run on .*not paired"):
        compare([1], tmp_path / "a")


def test_what_cannot_be_merged(tmp_path):
    compare([1], tmp_path / "a")
    compare([2], tmp_path / "b", estimator=classifier(lr=0.2))
    with pytest.raises(
        ValueError, match="holds a run that differs from this one in lr"
    ):
        merge_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    with pytest.raises(ValueError, match=r"Got .*nothing, which holds nothing of that"):
        merge_checkpoints([tmp_path / "nothing"], tmp_path / "all")
    with pytest.raises(TypeError, match="a folder"):
        merge_checkpoints([3], tmp_path / "all")
    assert not (tmp_path / "all").exists()
