"""The result: summaries, files, merging."""

import copy
import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from flatmin import compare_dynamics
from flatmin.comparison import (
    ComparisonResult,
    holm,
    merge_comparisons,
    paired_difference,
)
from flatmin.comparison._files import checksum
from flatmin.noise import GLDFull

from ._problems import classifier, digits, norm

ROOT = Path(__file__).parents[2]

X, y, *_ = digits()


def compare(methods, seeds, **settings):
    return compare_dynamics(
        methods,
        X,
        y,
        estimator=classifier(),
        n_seeds=seeds,
        metrics={"norm": norm},
        quench=10,
        **settings,
    )


@pytest.fixture(scope="module")
def result():
    """With a method that diverges; read only."""
    methods = {"gd": {}, "sgd": {}, "gld_full": GLDFull(), "bad": {"lr": 1e30}}
    methods["bad"]["method"] = "gd"
    return compare(methods, [3, 1, 2])


@pytest.mark.parametrize("baseline", ["gd", "sgd"])
def test_the_summary_by_hand(result, baseline):
    summary = result.summary(baseline, columns=["loss", "norm"], confidence=0.9)
    table = result.table.query("phase == 'quench' and iteration == 30")
    ends = table.pivot(index="seed", columns="method", values="norm").loc[[1, 2, 3]]
    found = summary.loc[("norm", "quench")]
    assert found.index.tolist() == result.methods
    for method in ("gd", "sgd", "gld_full"):
        row = found.loc[method]
        np.testing.assert_allclose(row["mean"], ends[method].mean())
        np.testing.assert_allclose(row["std"], np.std(ends[method], ddof=1))
        if method == baseline:
            assert np.isnan(row["difference"])
            continue
        by_hand = paired_difference(ends[method], ends[baseline], confidence=0.9)
        np.testing.assert_allclose(
            row[["difference", "low", "high", "p_value"]].astype(float),
            [by_hand.mean, by_hand.low, by_hand.high, by_hand.p_value],
        )
    np.testing.assert_array_equal(found["p_holm"], holm(found["p_value"]))
    assert found["n_failed"].tolist() == [0, 0, 0, 3]
    assert np.isnan(found.loc["bad", "mean"])


def test_the_baseline_is_the_first_method_and_all_columns_are_summed_up(result):
    summary = result.summary()
    assert_frame_equal(summary, result.summary("gd"))
    statistics = "mean std difference low high p_value p_holm n n_failed n_left_out"
    assert list(summary) == statistics.split()
    columns = set(summary.index.get_level_values("column"))
    assert {"loss", "train_score", "norm", "distance", "noise_norm"} <= columns
    assert "iteration" not in columns


def test_names_are_checked(result):
    with pytest.raises(ValueError, match="baseline 'sdg'; did you mean 'sgd'"):
        result.summary("sdg")
    with pytest.raises(ValueError, match="column 'los'; did you mean 'loss'"):
        result.summary(columns=["los"])


def test_json_and_back(result, tmp_path):
    table = result.table.copy()
    table.loc[0, "norm"] = np.inf
    table.loc[1, "norm"] = -np.inf
    changed = ComparisonResult(table, result.units, result.protocol, result.provenance)
    changed.to_json(tmp_path / "a.json")
    found = ComparisonResult.from_json(tmp_path / "a.json")
    assert_frame_equal(found.table, table, check_exact=True)
    assert_frame_equal(found.units, result.units, check_exact=True)
    assert found.protocol == result.protocol
    assert found.provenance == result.provenance
    assert_frame_equal(found.summary(), changed.summary())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_counts_in_the_table_stay_counts(tmp_path):
    estimator = classifier(warmup=None, max_iter=2)
    found = compare_dynamics(["svag"], X, y, estimator=estimator, n_seeds=[0])
    assert found.table["n_steps"].tolist() == [0, 8]
    found.to_json(tmp_path / "a.json")
    read = ComparisonResult.from_json(tmp_path / "a.json")
    assert_frame_equal(read.table, found.table, check_exact=True)


def test_the_file_says_where_it_comes_from(result, tmp_path):
    result.to_json(tmp_path / "a.json")

    def forbid(constant):
        raise AssertionError(constant)

    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=forbid)  # strict JSON has no NaN
    (origin,) = content["provenance"]
    assert {"python", "torch", "flatmin", "scipy"} <= origin["versions"].keys()
    assert origin["machine"]["device"] == "cpu"
    protocol = content["protocol"]
    assert protocol["estimator"]["warmup"]["max_iter"] == 30
    assert protocol["methods"]["bad"] == {"method": "gd", "lr": 1e30}
    assert protocol["methods"]["gld_full"]["method"] == "GLDFull()"
    assert protocol["metrics"]["norm"].endswith("norm")
    assert protocol["quench"] == 10
    assert " at 0x" not in text
    assert content["units"]["seed"] == [3, 1, 2] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "flatmin.compa', "not JSON, or cut off"),
        ('{"format": "other"}', "Got 'other'"),
        ("[1]", "Got None"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ComparisonResult.from_json(tmp_path / "a.json")


def test_merging_gives_what_one_call_would():
    whole = compare(["gd", "sgd"], [0, 1])
    parts = [compare([m], [s]) for m in ("gd", "sgd") for s in (0, 1)]
    merged = merge_comparisons(parts)
    assert_frame_equal(merged.table, whole.table, check_exact=True)
    assert (merged.methods, merged.seeds) == (whole.methods, whole.seeds)
    assert merged.protocol == whole.protocol
    assert merged.provenance == whole.provenance


def test_what_cannot_be_merged():
    one = compare(["gd"], [0])
    with pytest.raises(ValueError, match="at least one ComparisonResult"):
        merge_comparisons([])
    with pytest.raises(ValueError, match="'gd' with seed 0 twice"):
        merge_comparisons([one, one])
    other = compare({"gd": {"lr": 0.2}}, [1])
    with pytest.raises(ValueError, match="methods and seeds alone"):
        merge_comparisons([one, other])


def _weighted(weight):
    return torch.nn.CrossEntropyLoss(weight=torch.tensor([weight] + 9 * [1.0]))


def _constant(factor):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor)

    return {"schedule": schedule}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loss", (_weighted(1.0), _weighted(9.0))),
        ("training", (_constant(1.0), _constant(0.1))),
        ("params_init", (0.0, 1.0)),
    ],
)
def test_settings_that_are_described_alike_are_told_apart(name, values, tmp_path):
    few = {"max_iter": 2, "warmup": None, "module_params": {"hidden_layer_sizes": 16}}

    def run(method, seed, value):
        settings = {"estimator": classifier(**few, **{name: value})}
        return compare_dynamics([method], X, y, n_seeds=[seed], **settings)

    n_params = X.shape[1] * 16 + 16 + 16 * 10 + 10
    if name == "params_init":
        values = [np.full(n_params, 0.01) for _ in values]
        values[1][n_params // 2] = 1
    one, other = run("gd", 0, values[0]), run("sgd", 1, values[1])
    with pytest.raises(ValueError, match=f"Got {name} with another content under one"):
        merge_comparisons([one, other])
    # Files keep what tells them apart, and alike ones are one comparison.
    one.to_json(tmp_path / "one.json")
    stored = ComparisonResult.from_json(tmp_path / "one.json")
    alike = run("sgd", 1, copy.deepcopy(values[0]) if name != "training" else values[0])
    merged = merge_comparisons([stored, alike])
    with pytest.raises(ValueError, match=f"Got {name} with another content under one"):
        merge_comparisons([merged, run("gd", 2, values[1])])
    # Results of earlier versions tell nothing of it.
    del stored.protocol["hashes"]
    assert "hashes" in merge_comparisons([stored, other]).protocol


class Data:
    """A function of the seed whose name does not tell what it gives."""

    def __init__(self, first):
        self.first = first

    def __repr__(self):
        return "Data()"

    def __call__(self, seed):
        return X[self.first :], y[self.first :]


def test_results_on_other_data_cannot_be_merged():
    settings = {"estimator": classifier(warmup=None, max_iter=2)}
    one = compare_dynamics(["gd"], X, y, n_seeds=[0], **settings)
    other = compare_dynamics(["gd"], X[1:], y[1:], n_seeds=[1], **settings)
    with pytest.raises(ValueError, match="methods and seeds alone"):
        merge_comparisons([one, other])
    frame = compare_dynamics(["gd"], pd.DataFrame(X), y, n_seeds=[1], **settings)
    assert merge_comparisons([one, frame]).seeds == [0, 1]
    # Files of earlier versions do not say which arrays they were.
    for result in (one, other):
        del result.protocol["data_hash"]
    merge_comparisons([one, other])
    parts = [
        compare_dynamics([method], Data(first), n_seeds=[0], **settings)
        for method, first in [("gd", 0), ("sgd", 1)]
    ]
    with pytest.raises(ValueError, match=r"have the same data.*Got first losses.*seed"):
        merge_comparisons(parts)


def test_failures_are_rows_of_units(result):
    assert set(result.failures["method"]) == {"bad"}
    assert isinstance(result.failures, pd.DataFrame)


@pytest.fixture
def stored(result, tmp_path):
    result.to_json(tmp_path / "a.json")
    return tmp_path / "a.json"


def edited(path, change):
    """Change a stored result as somebody with an editor would."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["table"]["loss"].pop(3),  # rows would shift
        lambda content: content["table"]["loss"].__setitem__(0, 0.5),
        lambda content: content["units"]["seed"].reverse(),
        lambda content: content["protocol"].__setitem__("quench", 7),
        lambda content: content.pop("sha256"),
    ],
)
def test_a_result_that_was_edited_is_refused(stored, change):
    edited(stored, change)
    with pytest.raises(ValueError, match="checksum is wrong: it was edited"):
        ComparisonResult.from_json(stored)


def test_white_space_and_the_order_of_names_may_change(stored):
    before = ComparisonResult.from_json(stored)
    content = json.loads(stored.read_text(encoding="utf-8"))
    text = json.dumps(dict(reversed(content.items())), indent=2)
    stored.write_text(text, encoding="utf-8")
    assert_frame_equal(ComparisonResult.from_json(stored).table, before.table)


def without_checksum(path):
    def change(content):
        content["format"] = "flatmin.comparison/1"
        del content["sha256"]

    edited(path, change)


def converter():
    script = ROOT / "benchmarks" / "convert_comparison.py"
    if not script.exists():
        pytest.skip("a release has no benchmarks")
    return runpy.run_path(script)["convert"]


def test_settings_of_an_earlier_revision_are_renamed(stored):
    before = ComparisonResult.from_json(stored)

    def change(content):
        settings = content["protocol"]["estimator"]
        warmup = settings.pop("warmup")
        settings |= {"warmup_iter": warmup["max_iter"], "warmup_lr": warmup["lr"]}
        settings |= {"warmup_method": "gd", "warmup_optimizer": "sgd"}
        settings["callbacks_params"] = None
        content["sha256"] = checksum(content)

    edited(stored, change)
    converter()(stored)
    text = stored.read_text(encoding="utf-8")
    assert ComparisonResult.from_json(stored).protocol == before.protocol
    converter()(stored)
    assert stored.read_text(encoding="utf-8") == text
    edited(stored, lambda content: content["table"]["loss"].__setitem__(0, 0.5))
    with pytest.raises(ValueError, match="was edited, or damaged"):
        converter()(stored)


def test_a_result_of_an_earlier_revision_is_converted(stored):
    before = ComparisonResult.from_json(stored)
    without_checksum(stored)
    with pytest.raises(ValueError, match=r"benchmarks/convert_comparison\.py"):
        ComparisonResult.from_json(stored)
    converter()(stored)
    after = ComparisonResult.from_json(stored)
    assert_frame_equal(after.table, before.table)
    assert_frame_equal(after.units, before.units)
    assert after.protocol == before.protocol


def test_columns_of_the_test_data_are_converted(stored):
    before = ComparisonResult.from_json(stored).table

    def change(content):
        content["format"] = "flatmin.comparison/2"
        loss = content["table"]["loss"]
        content["table"] |= {"valid_loss": loss, "valid_score": [2 * x for x in loss]}
        content["sha256"] = checksum(content)

    edited(stored, change)
    converter()(stored)
    after = ComparisonResult.from_json(stored).table
    expected = before.assign(test_loss=before["loss"], test_score=2 * before["loss"])
    assert_frame_equal(after, expected)


def test_the_converter_refuses_what_was_edited(stored):
    edited(stored, lambda content: content.update(format="flatmin.comparison/2"))
    with pytest.raises(ValueError, match="was edited, or damaged"):
        converter()(stored)


def test_the_converter_refuses_what_has_lost_an_entry(stored):
    without_checksum(stored)
    edited(stored, lambda content: content["table"]["loss"].pop())
    text = stored.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="must be of one length"):
        converter()(stored)
    assert stored.read_text(encoding="utf-8") == text


def test_columns_of_several_lengths_are_refused_even_with_a_checksum(stored):
    def change(content):
        content["table"]["loss"].pop()
        content["sha256"] = checksum(content)

    edited(stored, change)
    with pytest.raises(ValueError, match="of one length"):
        ComparisonResult.from_json(stored)
