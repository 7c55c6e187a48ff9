"""End points and differences against numbers that are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flatmin import NoisyDiffusionClassifier, compare_dynamics
from flatmin.comparison import ComparisonResult
from flatmin.plotting import ComparisonDisplay, TrajectoryDisplay

from ._problems import ends


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    y = (X[:, 0] > 0).astype(int)
    clf = NoisyDiffusionClassifier(
        module_params={"hidden_layer_sizes": (3,)}, max_iter=4, lr=0.3
    )
    return compare_dynamics(
        ["sgd", "gd", "gld_full"],
        X[:20],
        y[:20],
        X_test=X[20:],
        y_test=y[20:],
        estimator=clf,
        n_seeds=[0, 1, 2],
        quench=2,
        end_metrics={"end_sharpness": lambda risk, theta: theta.norm()},
    )


def drawn(mark):
    return np.stack([mark.get_xdata(), mark.get_ydata()], 1)


def test_end_points_as_they_are(result):
    display = ComparisonDisplay.from_results(result).plot(paired=False, phase="noise")
    rows = result.ends().loc["noise"]
    for method in result.methods:
        own = rows.loc[method, ["end_sharpness", "test_score"]].to_numpy()
        np.testing.assert_allclose(drawn(display.unit_marks_[method]), own)
        np.testing.assert_allclose(drawn(display.marks_[method])[0], own.mean(0))
    assert list(display.marks_) == result.methods
    title = display.ax_.get_legend().get_title().get_text()
    assert title == "mean and each of 3 seeds"
    # The same colours as the runs have.
    runs = TrajectoryDisplay.from_results(result).plot(quantities=["loss"])
    for method, mark in display.marks_.items():
        assert mark.get_color() == runs.lines_["loss", method].get_color()


def test_pairs_have_one_baseline():
    display = ComparisonDisplay(ends(), baseline="gd").plot()
    # Seeds 0, 1, 2 have gd at 5, 8, 11 and at 0.5, 0.6, 0.7.
    points = drawn(display.unit_marks_["gd"])
    np.testing.assert_allclose(points, [[8.0, 0.6]] * 3)
    points = drawn(display.unit_marks_["gld_full"])
    own = 2 * np.array([1.0, 1.1, 1.2])
    np.testing.assert_allclose(points, np.stack([8 - own, 0.6 + 0.01 * own], 1))
    title = display.ax_.get_legend().get_title().get_text()
    assert title == "mean and each of 3 seeds, paired with gd"


def test_a_seed_that_is_missing_is_told():
    table = ends()
    lost = (table["method"] == "sgd") & (table["seed"] == 2)
    display = ComparisonDisplay(table[~lost]).plot()
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["gd", "sgd (2 of 3)", "gld_full"]
    # Without its baseline a seed has no pairs.
    lost = (table["method"] == "gd") & (table["seed"] == 2)
    display = ComparisonDisplay(table[~lost]).plot()
    assert all(len(m.get_xdata()) == 2 for m in display.unit_marks_.values())
    lost = table["method"] == "gd"
    with pytest.raises(ValueError, match=r"'gd'\. Got none; pass paired=False"):
        ComparisonDisplay(table[~lost], baseline="gd").plot()


def test_the_forest_holds_the_intervals(result):
    columns = ["test_score", "loss"]
    display = ComparisonDisplay.from_results(result, baseline="gd", columns=columns)
    display.plot(kind="differences")
    assert display.axes_.shape == (2,)
    rows = result.ends()["loss"]
    for phase in ("noise", "quench"):
        for method in ("sgd", "gld_full"):
            pairs = rows[phase][method] - rows[phase]["gd"]
            mark = display.marks_["loss", phase, method]
            assert mark.get_xdata()[0] == pytest.approx(pairs.mean())
            low, high = stats.t.interval(0.95, 2, pairs.mean(), pairs.sem())
            height = mark.get_ydata()[0]
            (line,) = (
                line
                for line in display.axes_[1].lines
                if list(line.get_ydata()) == [height, height]
            )
            np.testing.assert_allclose(line.get_xdata(), [low, high])
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels == ["sgd", "gld_full"]
    assert not any(key[2] == "gd" for key in display.marks_)
    display = ComparisonDisplay.from_results(result, baseline="gd", methods=["sgd"])
    assert {key[2] for key in display.plot(kind="differences").marks_} == {"sgd"}
    assert list(display.plot().marks_) == ["gd", "sgd"]
    display = ComparisonDisplay.from_results(result, baseline="gd", columns=columns)
    only = display.plot(kind="differences", columns="loss")
    assert only.axes_.shape == (1,)


def test_a_single_pair_has_a_mark_and_no_interval(result):
    rows = result.table[result.table["seed"] == 0]
    units = result.units[result.units["seed"] == 0]
    one = replace(result, table=rows, units=units)
    display = ComparisonDisplay.from_results(one, columns="loss")
    display.plot(kind="differences")
    assert len(display.marks_) == 4
    title = display.ax_.get_legend().get_title().get_text()
    assert title == "one pair, no interval"
    assert display.plot().ax_.get_legend().get_title().get_text() == "one seed"


def test_what_is_not_there(result):
    display = ComparisonDisplay.from_results(result, columns="loss")
    with pytest.raises(TypeError, match=r"a ComparisonResult.* Got DataFrame"):
        ComparisonDisplay.from_results(result.table)
    with pytest.raises(ValueError, match="Unknown baseline 'sgdd'; did you mean 'sgd'"):
        ComparisonDisplay.from_results(result, baseline="sgdd")
    with pytest.raises(ValueError, match="Unknown column 'lss'; did you mean 'loss'"):
        ComparisonDisplay.from_results(result, columns="lss")
    with pytest.raises(ValueError, match="Unknown kind 'forest'"):
        display.plot(kind="forest")
    with pytest.raises(ValueError, match="Unknown phase 'quench_loss'"):
        display.plot(phase="quench_loss")
    with pytest.raises(ValueError, match="Unknown column 'train_scores'"):
        display.plot(y="train_scores")
    with pytest.raises(ValueError, match="Unknown column 'test_score'"):
        display.plot(kind="differences", columns=["test_score"])
    alone = ComparisonDisplay(ends(["gd"]))
    with pytest.raises(ValueError, match=r"another method with an end\. Got gd"):
        alone.plot(kind="differences")
    blunt = ends().drop(columns="sharpness")
    with pytest.raises(ValueError, match=r"none of end_sharpness.* Pass x="):
        ComparisonDisplay(blunt).plot()
    failed = result.units.assign(status="failed", phase="noise")
    rows = result.table.query("phase == 'noise' and iteration == 0")
    none = ComparisonResult(rows, failed, result.protocol, [])
    with pytest.raises(ValueError, match="no unit of the result came to an end"):
        ComparisonDisplay.from_results(none)
