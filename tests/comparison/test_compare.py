"""compare_dynamics: units, seeds, workers, failures."""

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from pandas.testing import assert_frame_equal

from flatmin import compare_dynamics, expected_sharpness
from flatmin.comparison import ComparisonResult
from flatmin.dynamics import run_warmup
from flatmin.estimators import _warmup
from flatmin.noise import GD, GLDFull

from ._problems import classifier, digits, norm

X, y, X_test, y_test = digits()


def sharpness(risk, theta):
    return expected_sharpness(risk, theta, n_draws=5)


class Breaks(GD):
    """Fails after some iterations of some seeds."""

    name = "breaks"

    def refresh(self, risk, theta, rng, previous=None):
        if previous is not None and rng.initial_seed() % 2:
            raise MemoryError("no room")
        return 1


def compare(methods=("gd", "sgd"), **settings):
    given = {"estimator": classifier(), "n_seeds": [3, 1], "quench": 10} | settings
    return compare_dynamics(methods, X, y, **given)


@pytest.fixture(scope="module")
def result():
    """Three methods, two seeds; read only."""
    return compare(
        ["gd", "sgd", GLDFull()],
        X_test=X_test,
        y_test=y_test,
        metrics={"norm": norm},
        end_metrics={"flatness": sharpness},
    )


def test_every_phase_of_every_unit_is_in_the_table(result):
    table = result.table
    assert list(table)[:4] == ["method", "seed", "iteration", "phase"]
    expected = {"warmup": [-30, -20, -10], "noise": [0, 10, 20], "quench": [20, 30]}
    for _, unit in table.groupby(["method", "seed"]):
        found = unit.groupby("phase")["iteration"].apply(list).to_dict()
        assert found == expected
    assert len(table) == 6 * 8
    assert result.methods == ["gd", "sgd", "gld_full"]
    assert result.seeds == [3, 1]
    assert (result.units["status"] == "done").all()


def test_a_unit_is_a_plain_fit(result):
    alone = classifier(method="sgd", random_state=3, metrics={"norm": norm})
    alone.fit(X, y, X_val=X_test, y_val=y_test)
    unit = result.table.query("method == 'sgd' and seed == 3 and phase != 'quench'")
    names = {"valid_loss": "test_loss", "valid_score": "test_score"}
    history = alone.history_.rename(columns=names)
    history["iteration"] -= 30
    assert_frame_equal(
        unit[list(history)].reset_index(drop=True), history, check_exact=True
    )
    quenched = classifier(
        method="gd", max_iter=10, warmup=None, params_init=alone.params_
    ).fit(X, y)
    end = result.ends().loc[("quench", "sgd", 3)]
    assert end["loss"] == quenched.history_["loss"].iloc[-1]
    assert end["flatness"] == float(sharpness(quenched.risk_, quenched.risk_.params()))


def test_methods_of_a_seed_start_at_one_point(result):
    start = result.ends().loc["start"].reset_index()
    columns = ["loss", "norm", "flatness", "test_score"]
    for _, group in start.groupby("seed"):
        assert (group[columns].nunique() == 1).all()
        assert (group["distance"] == 0).all()
    assert start["loss"].nunique() == 2


def test_end_metrics_are_measured_at_ends(result):
    table = result.table
    measured = table["flatness"].notna()
    at_ends = (table["phase"] == "noise") & table["iteration"].isin([0, 20])
    at_ends |= (table["phase"] == "quench") & (table["iteration"] == 30)
    assert (measured == at_ends).all()
    assert (table["flatness_stderr"].notna() == at_ends).all()
    assert table.loc[table["phase"] != "warmup", "norm"].notna().all()


def test_the_distance_is_that_from_the_switch(result):
    settings = {"warmup": None, "random_state": 1}
    start = classifier(method="gd", lr=0.3, max_iter=30, **settings).fit(X, y).params_
    end = classifier(method="gd", params_init=start, **settings).fit(X, y).params_
    distance = result.ends().loc[("noise", "gd", 1), "distance"]
    np.testing.assert_allclose(distance, np.linalg.norm(end - start), rtol=1e-5)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_change_nothing(result, backend):
    with parallel_config(backend):
        found = compare(
            ["gd", "sgd", GLDFull()],
            X_test=X_test,
            y_test=y_test,
            metrics={"norm": norm},
            end_metrics={"flatness": lambda risk, theta: sharpness(risk, theta)},
            n_jobs=2,
        )
    assert_frame_equal(found.table, result.table, check_exact=True)
    columns = ["method", "seed", "status"]
    assert_frame_equal(found.units[columns], result.units[columns])


def test_more_methods_or_seeds_change_nothing(result):
    found = compare(["sgd"], X_test=X_test, y_test=y_test, n_seeds=[1]).table
    same = result.table.query("method == 'sgd' and seed == 1")
    columns = list(found)
    assert_frame_equal(found, same[columns].reset_index(drop=True), check_exact=True)


@pytest.fixture
def warmups(monkeypatch):
    """A list that grows by one with each warm-up that is really run."""
    done = []

    def counted(*args, **settings):
        done.append(args)
        return run_warmup(*args, **settings)

    monkeypatch.setattr(_warmup, "run_warmup", counted)
    return done


def test_one_warmup_a_seed(warmups):
    compare(["gd", "sgd", "gld_full"])
    assert len(warmups) == 2


@pytest.mark.parametrize("whose", ["the call", "the estimator"])
def test_a_memory_keeps_warmups(tmp_path, warmups, whose):
    own, other = str(tmp_path / "own"), str(tmp_path / "other")
    settings = {"estimator": classifier(memory=own)}
    if whose == "the call":
        settings = {"estimator": classifier(memory=other), "memory": own}
    kept = [compare(**settings) for _ in range(2)]
    assert_frame_equal(kept[0].table, kept[1].table, check_exact=True)
    assert len(warmups) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_function_gives_each_seed_its_data():
    found = compare_dynamics(
        ["gd"], digits, estimator=classifier(), n_seeds=[0, 5], n_jobs=2
    )
    for seed in (0, 5):
        own = digits(seed)
        alone = classifier(method="gd", random_state=seed)
        alone.fit(*own[:2], X_val=own[2], y_val=own[3])
        unit = found.table[found.table["seed"] == seed]
        for column, of_fit in (("loss", "loss"), ("test_score", "valid_score")):
            assert unit[column].tolist() == alone.history_[of_fit].tolist()
        assert unit["test_loss"].tolist() == alone.history_["valid_loss"].tolist()
        assert not {"valid_loss", "valid_score"} & set(found.table)


def test_seeds_are_drawn_from_the_random_state():
    few = compare(["gd"], n_seeds=2, random_state=7, quench=0)
    more = compare(["gd"], n_seeds=3, random_state=7, quench=0)
    assert more.seeds[:2] == few.seeds
    assert len(set(more.seeds)) == 3
    assert "quench" not in set(few.table["phase"])
    assert set(few.summary().index.get_level_values("phase")) == {"noise"}


def test_the_quench_has_a_rate_of_its_own():
    slow, fast = (
        compare(["sgd"], n_seeds=[0], quench_lr=lr).ends().loc[("quench", "sgd", 0)]
        for lr in (1e-6, 0.5)
    )
    assert slow["loss"] > fast["loss"]
    own = compare({"sgd": {"lr": 0.5}}, n_seeds=[0], quench_lr=0.5)
    by_default = compare({"sgd": {"lr": 0.5}}, n_seeds=[0])
    assert_frame_equal(own.table, by_default.table, check_exact=True)


def test_the_quench_sees_all_examples():
    batches = compare(["sgd"], estimator=classifier(gradient_batch_size=10))
    ends = batches.ends()
    for seed in batches.seeds:
        unit = classifier(gradient_batch_size=10, method="sgd", random_state=seed)
        rate = {"lr": 0.1, "max_iter": 10, "warmup": None, "random_state": seed}
        theta = unit.fit(X, y).params_
        quenched = classifier(method="gd", params_init=theta, **rate).fit(X, y)
        expected = quenched.history_["loss"].iloc[-1]
        assert ends.loc[("quench", "sgd", seed), "loss"] == expected


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failed_unit_does_not_sink_the_rest(n_jobs):
    methods = {
        "gd": {},
        "explodes": {"method": "gd", "lr": 1e30},
        "breaks": Breaks(),
    }
    with parallel_config("threading"):
        found = compare(methods, n_jobs=n_jobs, n_seeds=[0, 1, 2])
    status = found.units.set_index(["method", "seed"])["status"]
    assert (status["gd"] == "done").all()
    assert (status["explodes"] == "failed").all()
    failures = found.failures.set_index(["method", "seed"])
    exploded = failures.loc["explodes"]
    assert (exploded["error"] == "DivergenceError").all()
    assert exploded["message"].str.contains("Try a smaller lr").all()
    broken = failures.loc["breaks"]
    assert set(broken["error"]) == {"MemoryError"}
    assert 0 < len(broken) < 3
    # The rows until then are there, but no end.
    ends = found.ends()
    assert ("noise", "explodes") not in ends.index
    assert ("quench", "explodes") not in ends.index
    assert len(found.table.query("method == 'explodes' and phase == 'noise'")) == 3
    summary = found.summary("gd", columns=["loss"]).loc[("loss", "quench")]
    assert summary["n_failed"].tolist() == [0, 3, len(broken)]
    assert summary["n"].tolist() == [3, 0, 3 - len(broken)]


def test_a_warmup_that_diverges_fails_its_units():
    found = compare(
        estimator=classifier(warmup={"max_iter": 30, "lr": 1e30}), n_seeds=[0]
    )
    assert (found.failures["phase"] == "warmup").all()
    assert len(found.failures) == 2
    assert set(found.table["phase"]) == {"warmup"}
    assert found.summary().empty


def test_no_data_at_all_is_a_result_too(tmp_path):
    def load(seed):
        raise OSError("the disk is away")

    found = compare_dynamics(["gd"], load, estimator=classifier(), n_seeds=[1, 0])
    assert found.failures["message"].tolist() == ["the disk is away"] * 2
    assert found.table.empty
    assert found.summary().empty
    found.to_json(tmp_path / "a.json")
    again = ComparisonResult.from_json(tmp_path / "a.json")
    assert_frame_equal(again.units, found.units)


def test_a_seed_without_data_fails_alone():
    def load(seed):
        if seed:
            raise OSError("the disk is away")
        return X, y

    found = compare_dynamics(["gd"], load, estimator=classifier(), n_seeds=[1, 0])
    assert found.failures["seed"].tolist() == [1]
    assert found.failures["message"].tolist() == ["the disk is away"]
    assert set(found.table["seed"]) == {0}


def test_units_are_handed_over_as_they_end():
    seen = []
    found = compare(on_unit=seen.append)
    assert len(seen) == 4
    for unit in seen:
        (method,), (seed,) = unit.methods, unit.seeds
        assert list(unit.protocol["hashes"]["methods"]) == [method]
        is_same = (found.table["method"] == method) & (found.table["seed"] == seed)
        same = found.table[is_same].reset_index(drop=True)
        assert_frame_equal(unit.table, same, check_exact=True)


def test_threads_are_put_back_and_counted(monkeypatch):
    seen = []

    def threads(risk, theta):
        seen.append(torch.get_num_threads())
        return 0

    torch.set_num_threads(2)
    try:
        compare(["gd"], metrics={"threads": threads}, n_seeds=[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}


def test_large_arrays_reach_the_workers():
    # joblib hands them over as read-only maps of a file.
    wide = np.tile(X, (1, 40))
    assert wide.nbytes > 1e6
    found = compare_dynamics(
        ["gd"], wide, y, estimator=classifier(), n_seeds=[0, 1], n_jobs=2
    )
    alone = classifier(method="gd", random_state=1).fit(wide, y)
    end = found.ends().loc[("noise", "gd", 1), "loss"]
    assert end == alone.history_["loss"].iloc[-1]


def test_a_bar_shows_warmups_and_units(capsys):
    compare(["gd"], n_seeds=[0, 1], verbose=True)
    assert "4/4" in capsys.readouterr().err
    compare(["gd"], n_seeds=[0])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"estimator": "sgd"}, TypeError, "NoisyDiffusionClassifier.*Got 'sgd'"),
        ({"estimator": classifier(lr=-1)}, ValueError, "'lr'"),
        ({"estimator": classifier(device="gpu")}, ValueError, "device must be"),
        ({"n_seeds": 0}, ValueError, "n_seeds"),
        ({"n_seeds": []}, ValueError, "there must be one"),
        ({"n_seeds": [1, 1]}, ValueError, "once"),
        ({"n_seeds": [-1]}, ValueError, "at least 0"),
        ({"n_seeds": None}, TypeError, "a number or the seeds"),
        ({"quench": -1}, ValueError, "quench"),
        ({"quench_lr": 0.0}, ValueError, "quench_lr"),
        ({"quench_lr": float("nan")}, ValueError, "quench_lr must be a finite"),
        ({"n_threads": 1000}, ValueError, "n_threads must be at most"),
        ({"metrics": [norm]}, TypeError, "metrics must be a mapping"),
        ({"metrics": {"a": 3}}, TypeError, r"metrics\['a'\] must be a function"),
        ({"metrics": {"distance": norm}}, ValueError, "Got 'distance'"),
        ({"end_metrics": {"test_score": norm}}, ValueError, "Got 'test_score'"),
        (
            {"estimator": classifier(metrics={"distance": norm})},
            ValueError,
            "metrics of the estimator need .* Got 'distance'",
        ),
        ({"metrics": {"loss": norm}}, ValueError, "Got 'loss'"),
        ({"metrics": {"a": lambda risk, t: t}}, TypeError, "must return a number"),
        ({"end_metrics": {"loss": norm}}, ValueError, "Got 'loss'"),
        ({"end_metrics": {"a": lambda risk, t: t}}, TypeError, "must return a number"),
        ({"X_test": X}, ValueError, "y_test=None"),
    ],
)
def test_bad_input_is_told_before_units_are_run(settings, error, message):
    seen = []
    with pytest.raises(error, match=message):
        compare(on_unit=seen.append, **settings)
    assert seen == []


def test_on_unit_is_checked_before_units_are_run():
    def never(seed):
        raise AssertionError("data were loaded")

    with pytest.raises(TypeError, match=r"on_unit must be a function.*Got 3"):
        compare_dynamics(["gd"], never, estimator=classifier(), on_unit=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X,), "y must be given"),
        ((digits, y), "leave y"),
        ((lambda seed: (X, y, X),), "of length 3"),
        ((lambda seed: X,), "Got ndarray"),
        ((np.full_like(X, np.nan), y), "NaN"),
    ],
)
def test_bad_data(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_dynamics(["gd"], *arguments, estimator=classifier(), n_seeds=1)


def test_the_result_is_of_its_class(result):
    assert isinstance(result, ComparisonResult)
    assert isinstance(result.table, pd.DataFrame)


class Parts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, upper, lower):
        return {"hidden": lower, "logits": self.linear(torch.cat([upper, lower], 1))}


def test_several_arrays():
    def parts(array):
        return {"lower": array[:, 32:], "upper": array[:, :32]}

    def run(estimator, *data, **options):
        settings = {"n_seeds": [1], "estimator": estimator, "random_state": 0}
        return compare_dynamics(["gd", "sgd"], *data, **settings, **options)

    settings = {"module_params": None, "max_iter": 4, "warmup": {"max_iter": 3}}
    test = {"X_test": parts(X_test), "y_test": y_test}
    estimator = classifier(module=Parts, **settings)
    found = run(estimator, parts(X), y, **test)
    whole = classifier(module=torch.nn.Linear(64, 10), **settings)
    expected = run(whole, X, y, X_test=X_test, y_test=y_test)
    assert list(found.table.columns) == list(expected.table.columns)
    held = {**parts(X), "digit": y}
    named = run(estimator.set_params(target="digit"), held, **test)
    assert_frame_equal(named.table, found.table)
    # names count, and their order does not
    swapped = dict(zip(held, reversed(parts(X).values()), strict=False))
    hashes = {
        name: run(classifier(module=Parts, **settings), given, y).protocol["data_hash"]
        for name, given in {
            "given": parts(X),
            "again": dict(reversed(parts(X).items())),
            "swapped": swapped,
        }.items()
    }
    assert hashes["given"] == hashes["again"] != hashes["swapped"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (({"upper": X, "lower": X[1:]}, y), r"Got 80 in X\['upper'\] and 79"),
        (({"upper": X, "lower": X * np.nan}, y), "NaN"),
    ],
)
def test_bad_parts(data, message):
    with pytest.raises(ValueError, match=message):
        compare_dynamics(["gd"], *data, estimator=classifier(), n_seeds=1)
