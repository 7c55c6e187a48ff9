"""Figure 5's script on few iterations, in this process, and on made-up images."""

import importlib
import re
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "paper"


def fake_images(seed, sizes):
    """Return a bright square for each class, at a place of its own."""
    rng = np.random.default_rng(seed)
    y = np.arange(80) % 10
    X = rng.random((80, 1, 28, 28), dtype=np.float32) / 2
    for image, label in zip(X, y, strict=True):
        row, column = divmod(label, 4)
        image[0, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7] += 0.5
    return X[:60], y[:60], X[60:], y[60:]


@pytest.fixture
def script(monkeypatch):
    mpl.use("Agg")
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    module = importlib.import_module("plot_comparison_on_fashion_mnist")
    monkeypatch.setattr(module, "load", fake_images)
    sizes = {"warmup": 20, "noise": 4, "quench": 4, "every": 2}
    monkeypatch.setattr(module, "SHORT", module.SHORT | sizes)
    yield module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def run(script, tmp_path, monkeypatch, capsys):
    """Return a function that runs the script and returns what it printed."""

    def call(*arguments):
        command = ["script", "--output", str(tmp_path), "--seeds", "0", "1", *arguments]
        monkeypatch.setattr("sys.argv", command)
        script.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def asked(script, monkeypatch):
    """A list of what compare_dynamics was asked for."""
    calls = []
    compare = script.compare_dynamics

    def spy(methods, data, **settings):
        calls.append((list(methods), settings))
        return compare(methods, data, **settings)

    monkeypatch.setattr(script, "compare_dynamics", spy)
    return calls


@pytest.mark.slow
def test_a_run_is_resumed_and_drawn_again(run, asked, tmp_path):
    methods = ("--methods", "gd", "sgd")
    first = run(*methods)
    files = sorted(path.name for path in (tmp_path / "short").iterdir())
    assert files == [f"{m}_seed{s}.json" for m in ("gd", "sgd") for s in (0, 1)]
    assert (tmp_path / "short.png").stat().st_size > 10_000
    (call,) = asked
    assert call[0] == ["gd", "sgd"]
    assert call[1]["n_seeds"] == [0, 1]
    assert call[1]["n_jobs"] == 1

    (tmp_path / "short" / "sgd_seed1.json").unlink()
    assert run(*methods) == first
    assert asked[1][0] == ["sgd"]
    assert asked[1][1]["n_seeds"] == [1]

    assert run(*methods, "--plot-only") == run(*methods) == first
    assert len(asked) == 2


@pytest.mark.slow
def test_the_table_names_ends_and_differences(run):
    printed = run("--methods", "gd", "sgd", "gld_full")
    ends, differences = printed.split("Paired differences")
    for name in ("train_score", "test_score", "distance", "trace_ratio"):
        assert name in ends
    assert "end_sharpness" in differences
    row = next(line for line in ends.splitlines() if re.match(r"noise +gd ", line))
    assert float(row.split()[-1]) == 0  # GD has no noise
    row = next(line for line in ends.splitlines() if " gld_full " in line)
    np.testing.assert_allclose(float(row.split()[-1]), 1, atol=1e-3)


def test_the_device_and_the_jobs_are_passed_on(script, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(script, "compare_dynamics", lambda *_, **kw: seen.update(kw))
    arguments = script.parse_arguments(
        ["--full", "--device", "cuda", "--n-jobs", "8", "--output", str(tmp_path)]
    )
    script.compare(script.make_methods(arguments), [0], None, arguments)
    estimator = seen["estimator"]
    assert estimator.device == "cuda"
    assert seen["n_jobs"] == 8
    assert estimator.warmup == {"max_iter": 3000, "lr": 0.1}
    assert estimator.lr == 0.03
    assert (estimator.batch_size, estimator.n_components) == (20, 20)
    assert estimator.max_iter >= 2000
    assert seen["quench"] == 500
    # One rate and one loss for all, whatever the rate of the noise was.
    assert seen["quench_lr"] == 0.03
    assert (seen["quench_loss"], seen["quench_loss_iter"]) == (0.002, 6000)


def test_other_rates_are_an_option(script):
    methods = script.make_methods(script.parse_arguments(["--full"]))
    assert list(methods) == list(script.METHODS)
    arguments = script.parse_arguments(["--rates", "--methods", "gd", "gld_hessian"])
    methods = script.make_methods(arguments)
    assert methods["gd at 0.07"] == {"method": "gd", "lr": 0.07}
    labels = [f"{n} at {r}" for r in script.RATES for n in script.AT_RATES]
    assert list(methods) == ["gd", "gld_hessian", "svag", *labels]


def test_a_unit_that_the_machine_broke_is_tried_again(run, script, monkeypatch):
    def break_once(risk, theta):
        raise MemoryError("no room")

    shared = script._comparison
    whole = shared.covariance_trace
    monkeypatch.setattr(shared, "covariance_trace", break_once)
    with pytest.raises(SystemExit, match="no results"):
        run("--methods", "gd")
    monkeypatch.setattr(shared, "covariance_trace", whole)
    assert "Means over the seeds [0, 1]" in run("--methods", "gd")


@pytest.mark.parametrize(
    ("method", "column", "difference", "low", "high", "expected"),
    [
        ("sgd", "test_score", 0.010, 0.002, 0.018, "reproduced"),
        ("sgd at 0.07", "test_score", 0.010, 0.002, 0.018, "reproduced"),
        ("sgd", "test_score", 0.010, -0.001, 0.021, "partly"),
        ("sgd", "test_score", 0.003, 0.001, 0.005, "partly"),
        ("sgd", "test_score", 0.003, -0.001, 0.007, "not"),
        ("sgd", "test_score", -0.010, -0.018, -0.002, "not"),
        # Of a sharpness of 0.02 a fifth is 0.004, and flatter is less.
        ("sgd", "end_sharpness", -0.005, -0.008, -0.002, "reproduced"),
        ("sgd", "end_sharpness", -0.005, -0.012, 0.002, "partly"),
        ("sgd", "end_sharpness", -0.003, -0.004, -0.002, "partly"),
        ("sgd", "end_sharpness", 0.005, 0.002, 0.008, "not"),
        ("sgd", "test_score", np.nan, np.nan, np.nan, ""),
        ("gld_const", "test_score", 0.001, -0.002, 0.004, "reproduced"),
        ("gld_const", "test_score", 0.001, -0.004, 0.006, "not"),
        ("gld_const", "end_sharpness", -0.002, -0.005, 0.001, "not"),
        ("gld_const", "end_sharpness", np.nan, np.nan, np.nan, ""),
        ("gld_full", "test_score", 0.010, 0.002, 0.018, ""),
    ],
)
def test_the_rule_of_the_verdict(
    script, method, column, difference, low, high, expected
):
    row = {"method": method, "column": column, "mean of gd": 0.02}
    row |= {"difference": difference, "low": low, "high": high}
    assert script._comparison.verdict(pd.Series(row)) == expected


@pytest.mark.usefixtures("fashion_mnist_home")
def test_the_images_and_labels_depend_on_the_seed(script, monkeypatch):
    monkeypatch.undo()
    sizes = script.FULL
    (X, y, X_test, y_test), (other, *_) = (script.load(s, sizes) for s in (0, 1))
    assert X.shape == (1200, 1, 28, 28)
    assert len(y) == 1200
    assert len(X_test) == len(y_test) == 10_000
    assert not np.array_equal(X, other)
