"""End points that are kept, in files too, and what is measured on them later."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from flatmin import NoisyDiffusionRegressor, compare_dynamics, expected_sharpness
from flatmin.comparison import ComparisonResult, merge_comparisons
from flatmin.comparison._files import checksum
from flatmin.curvature import covariance_trace
from flatmin.dynamics import NoisyDescent

from ._problems import classifier, digits, norm

X, y, X_test, y_test = digits()
PHASES = ("start", "noise", "quench", "quench_loss")


def sharpness(risk, theta):
    return expected_sharpness(risk, theta, n_draws=5)


MEASURES = {"flatness": sharpness, "trace": covariance_trace, "norm": norm}


def compare(methods=("gd", "sgd"), **settings):
    given = {"estimator": classifier(), "n_seeds": [3, 1], "quench": 10}
    given |= {"quench_loss": 0.8, "quench_loss_iter": 300, "keep_params": True}
    return compare_dynamics(methods, X, y, **given | settings)


@pytest.fixture(scope="module")
def result():
    """With a method that diverges in its quench; read only."""
    methods = {"gd": {}, "sgd": {}, "bad": {"method": "gd", "lr": 1e30}}
    return compare(methods, end_metrics=MEASURES)


def assert_alike(one, two):
    assert_frame_equal(one.table, two.table, check_exact=True)
    assert one.end_points.keys() == two.end_points.keys()
    for key in one.end_points:
        first, second = one.params(*key), two.params(*key)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


def test_they_are_where_plain_fits_end(result):
    warm = classifier(method="gd", max_iter=0, random_state=3).fit(X, y)
    noisy = classifier(method="sgd", random_state=3).fit(X, y)
    settings = {"method": "gd", "max_iter": 10, "warmup": None}
    quenched = classifier(params_init=noisy.params_, **settings).fit(X, y)
    ends = {"start": warm, "noise": noisy, "quench": quenched}
    for phase, model in ends.items():
        found = result.params("sgd", 3, phase)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, model.params_)
    start = result.params("gd", 3, "start")
    np.testing.assert_array_equal(start, result.params("sgd", 3, "start"))
    start[:] = 0  # a copy
    assert result.params("gd", 3, "start").any()


def test_the_loss_of_each_is_that_of_the_table(result):
    risk = classifier(method="gd", max_iter=0, warmup=None).fit(X, y).risk_
    ends = result.ends()
    assert len(ends) == len(result.end_points) == 18
    for (phase, method, seed), row in ends.iterrows():
        theta = torch.as_tensor(result.params(method, seed, phase))
        assert float(risk.value(theta)) == row["loss"]


def test_what_is_not_there(result):
    with pytest.raises(ValueError, match="method 'sdg'; did you mean 'sgd'"):
        result.params("sdg", 3, "noise")
    with pytest.raises(ValueError, match="Unknown phase 'end'"):
        result.params("sgd", 3, "end")
    with pytest.raises(ValueError, match=r"no unit of 'sgd' with seed 4.*are 3, 1"):
        result.params("sgd", 4, "noise")
    with pytest.raises(ValueError, match="failed in 'noise' with DivergenceError: The"):
        result.params("bad", 3, "noise")
    with pytest.raises(ValueError, match="failed in 'noise'"):
        result.params("bad", 3, "quench")
    assert result.params("bad", 3, "start").any()
    bare = compare(["gd"], n_seeds=[1], keep_params=False, quench=0)
    with pytest.raises(ValueError, match="Pass keep_params=True"):
        bare.params("gd", 1, "noise")
    with pytest.raises(ValueError, match="Unknown phase 'quench'"):
        bare.params("gd", 1, "quench")
    with pytest.raises(TypeError, match="keep_params must be True or False"):
        compare(keep_params="noise")


def test_a_warmup_that_diverges_leaves_none():
    found = compare(
        estimator=classifier(warmup={"max_iter": 30, "lr": 1e30}), n_seeds=[0]
    )
    assert found.end_points == {}
    with pytest.raises(ValueError, match="failed in 'warmup'"):
        found.params("gd", 0, "start")
    assert found.measure({"norm": norm}).empty


def test_a_folder_keeps_them(monkeypatch, tmp_path):
    settings = {"n_seeds": [3], "checkpoint_dir": tmp_path}
    first = compare(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(NoisyDescent, "run", None)
        assert_alike(compare(**settings), first)
        without = compare(**settings, keep_params=False)
    assert without.end_points == {}
    assert_frame_equal(without.table, first.table, check_exact=True)


def test_units_of_a_folder_without_them_are_run_again(monkeypatch, tmp_path):
    settings = {"n_seeds": [3], "checkpoint_dir": tmp_path}
    without = compare(["gd"], **settings, keep_params=False)
    assert without.end_points == {}
    found = compare(**settings)
    assert_alike(found, compare(n_seeds=[3]))
    monkeypatch.setattr(NoisyDescent, "run", None)
    assert_alike(compare(**settings), found)


def test_files_hold_them(result, tmp_path):
    path = tmp_path / "a.json"
    result.to_json(path)
    assert {each.name for each in tmp_path.iterdir()} == {"a.json", "a.params.npz"}
    found = ComparisonResult.from_json(path)
    assert_alike(found, result)
    assert found.provenance == result.provenance
    assert_frame_equal(found.units, result.units)
    assert_frame_equal(found.summary(), result.summary())
    # The numbers are small, and the start of a seed is there once.
    assert len(path.read_text(encoding="utf-8")) < 40_000
    with np.load(tmp_path / "a.params.npz", allow_pickle=False) as file:
        assert len(file.files) == 2 + 4 * 3
    # Of a result without any there is one file.
    compare(["gd"], n_seeds=[1], keep_params=False).to_json(tmp_path / "b.json")
    assert not (tmp_path / "b.params.npz").exists()


def test_the_table_can_be_read_without_them(result, tmp_path):
    result.to_json(tmp_path / "a.json")
    (tmp_path / "a.params.npz").unlink()
    found = ComparisonResult.from_json(tmp_path / "a.json")
    assert_frame_equal(found.table, result.table, check_exact=True)
    with pytest.raises(ValueError, match="in a file that was not there"):
        found.params("sgd", 3, "noise")
    with pytest.raises(ValueError, match="in a file that was not there"):
        found.measure({"norm": norm}, X, y, estimator=classifier())
    with pytest.raises(ValueError, match="failed in 'noise'"):
        found.params("bad", 3, "noise")
    # A copy of the table has nothing to tell of them.
    found.to_json(tmp_path / "b.json")
    assert not (tmp_path / "b.params.npz").exists()


def test_the_parameters_of_another_result_are_refused(result, tmp_path):
    result.to_json(tmp_path / "a.json")
    path = tmp_path / "a.params.npz"
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    first = next(iter(arrays))
    for damage in (
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: path.write_bytes(b"no archive"),
        lambda: np.savez(path, **{**arrays, first: arrays[first] + 1}),
        lambda: np.savez(path, **{k: v for k, v in arrays.items() if k != first}),
    ):
        damage()
        with pytest.raises(ValueError, match="damaged, or holds the parameters of ano"):
            ComparisonResult.from_json(tmp_path / "a.json")
    path.write_bytes(whole)
    assert_alike(ComparisonResult.from_json(tmp_path / "a.json"), result)


def test_files_of_earlier_versions_can_be_read(result, tmp_path):
    old = compare(["gd"], n_seeds=[1], quench_loss=None, quench_loss_iter=None)
    old.to_json(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    del content["params"]
    for name in ("revision", "command"):
        del content["provenance"][0][name]
    content["sha256"] = checksum(content)
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    found = ComparisonResult.from_json(tmp_path / "a.json")
    assert_frame_equal(found.table, old.table, check_exact=True)
    new = compare(["sgd"], n_seeds=[1], quench_loss=None, quench_loss_iter=None)
    merged = merge_comparisons([found, new])
    assert len(merged.provenance) == 2
    np.testing.assert_array_equal(
        merged.params("sgd", 1, "noise"), new.params("sgd", 1, "noise")
    )
    with pytest.raises(ValueError, match="were not kept"):
        merged.params("gd", 1, "noise")


def test_merging_keeps_them(tmp_path):
    whole = compare()
    parts = [compare([method]) for method in ("gd", "sgd")]
    merged = merge_comparisons(parts)
    assert_alike(merged, whole)
    assert_frame_equal(merged.measure({"n": norm}), whole.measure({"n": norm}))
    merged.to_json(tmp_path / "a.json")
    assert_alike(ComparisonResult.from_json(tmp_path / "a.json"), whole)


def assert_as_in_the_run(measured, result):
    ends = result.ends()
    assert measured.index.names == ends.index.names
    columns = ["flatness", "flatness_stderr", "trace", "norm"]
    assert list(measured) == columns
    assert_frame_equal(measured, ends.loc[measured.index, columns], check_exact=True)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_it_is_measured_as_in_the_run(result, n_jobs):
    measured = result.measure(MEASURES, n_jobs=n_jobs)
    assert measured.index.equals(result.ends().index)
    assert_as_in_the_run(measured, result)


def test_it_is_measured_from_files(result, tmp_path):
    result.to_json(tmp_path / "a.json")
    found = ComparisonResult.from_json(tmp_path / "a.json")
    measured = found.measure(MEASURES, X, y, estimator=classifier(), phases="quench")
    assert set(measured.index.get_level_values("phase")) == {"quench"}
    assert len(measured) == 4
    assert_as_in_the_run(measured, result)


def weighted(dtype):
    return classifier(class_weight="balanced", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_seed_is_measured_on_its_own_data(tmp_path, dtype):
    """With class weights, which the data decide."""
    found = compare_dynamics(
        ["sgd"],
        digits,
        estimator=weighted(dtype),
        n_seeds=[0, 5],
        end_metrics=MEASURES,
        keep_params=True,
    )
    assert found.params("sgd", 0, "noise").dtype == dtype
    found.to_json(tmp_path / "a.json")
    again = ComparisonResult.from_json(tmp_path / "a.json")
    measured = again.measure(MEASURES, digits, estimator=weighted(dtype))
    assert_as_in_the_run(measured, found)
    # Without the weights the loss is another.
    with pytest.raises(ValueError, match="class_weight=None, stored 'balanced'"):
        again.measure(MEASURES, digits, estimator=classifier(dtype=dtype))
    X0, y0, *_ = digits(0)
    with pytest.raises(
        ValueError, match=r"loss of 'sgd' with seed 5 .* was .*, and is"
    ):
        again.measure(MEASURES, X0, y0, estimator=weighted(dtype))
    by_label = {"class_weight": dict.fromkeys(range(10), 1.0), "dtype": dtype}
    again.protocol["estimator"]["class_weight"] = {str(k): 1.0 for k in range(10)}
    with pytest.raises(ValueError, match="must be those of the comparison"):
        again.measure(MEASURES, digits, estimator=classifier(**by_label))


def test_a_regressor_is_measured_too():
    """With a loss of a million, and one of a millionth."""
    for scale in (1e3, 1e-3):
        settings = {"module_params": {"hidden_layer_sizes": 4}, "max_iter": 10}
        found = compare_dynamics(
            ["sgd"],
            X,
            scale * y,
            estimator=NoisyDiffusionRegressor(lr=0.01, **settings),
            n_seeds=[0],
            end_metrics=MEASURES,
            keep_params=True,
        )
        assert_as_in_the_run(found.measure(MEASURES), found)
        with pytest.raises(ValueError, match="must be those of the comparison"):
            found.measure(MEASURES, X, 1.01 * scale * y)


def test_what_a_file_does_not_hold_is_asked_for(result):
    away = pickle.loads(pickle.dumps(result))
    assert away.source is None
    assert_alike(away, result)
    with pytest.raises(ValueError, match=r"pass X and y.* Got none for the data"):
        away.measure({"norm": norm})
    with pytest.raises(ValueError, match="Got none for the estimator"):
        away.measure({"norm": norm}, X, y)
    function = "A function of the seed returns all data"
    for data, why in (((X,), "y must be given, unless X"), ((digits, y), function)):
        with pytest.raises(ValueError, match=why):
            away.measure({"norm": norm}, *data, estimator=classifier())
    other = classifier(lr=0.2, module_params={"hidden_layer_sizes": 9})
    with pytest.raises(ValueError, match=r"lr=0.2, stored 0.1; module_params=\{"):
        away.measure({"norm": norm}, X, y, estimator=other)
    with pytest.raises(TypeError, match=r"estimator must be a Noisy.* Got 'sgd'"):
        away.measure({"norm": norm}, X, y, estimator="sgd")
    # Where it is measured is free, and so is what no measure sees.
    free = classifier(memory="nowhere", random_state=7, verbose=True)
    assert len(away.measure({"norm": norm}, X, y, estimator=free)) == 18


def test_what_was_measured_is_summed_up_and_stored(tmp_path):
    methods = {"gd": {}, "sgd": {}}
    in_the_run = compare(methods, end_metrics=MEASURES)
    later = compare(methods)
    measured = later.measure(MEASURES)
    found = later.with_measures(measured)
    assert found.provenance == later.provenance == [measured.attrs["provenance"]]
    columns = list(in_the_run.table)
    assert_frame_equal(found.table[columns], in_the_run.table, check_exact=True)
    assert_frame_equal(found.summary(), in_the_run.summary().loc[found.summary().index])
    found.to_json(tmp_path / "a.json")
    assert_alike(ComparisonResult.from_json(tmp_path / "a.json"), found)
    measured.attrs["provenance"] = {"revision": "later"}
    some = later.with_measures(measured.xs("quench", drop_level=False))
    assert some.table["norm"].notna().sum() == 4
    assert some.provenance == [*later.provenance, {"revision": "later"}]
    with pytest.raises(ValueError, match=r"use yet. Got flatness, "):
        found.with_measures(measured)
    other = measured.rename(index={"sgd": "adam"})
    with pytest.raises(
        ValueError, match="'noise' of 'adam' with seed 1, which is none"
    ):
        later.with_measures(other)
    twice = pd.concat([measured, 2 * measured]), pd.concat([measured] * 2, axis=1)
    for table in twice:
        with pytest.raises(ValueError, match="must have one row for each end, and one"):
            later.with_measures(table)


def test_two_numbers_for_one_theta_are_refused():
    still = compare({"gd": {}}, estimator=classifier(max_iter=0), quench=0)
    measured = still.measure({"flat": norm})
    still.with_measures(measured)
    measured.loc["noise", "flat"] = 7.0
    with pytest.raises(ValueError, match="one value for one θ"):
        still.with_measures(measured)


def test_bad_measures(result):
    with pytest.raises(TypeError, match="measures must be a mapping"):
        result.measure([norm])
    with pytest.raises(ValueError, match="Unknown phase 'nois'; did you mean 'noise'"):
        result.measure({"norm": norm}, phases=["nois"])
    with pytest.raises(TypeError, match=r"measures\['a'\] must return a number"):
        result.measure({"a": lambda risk, theta: theta})


def test_threads_are_those_of_the_run_and_put_back(result):
    seen = []

    def threads(risk, theta):
        seen.append(torch.get_num_threads())
        return 0

    torch.set_num_threads(2)
    try:
        result.measure({"threads": threads}, phases="start")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}
