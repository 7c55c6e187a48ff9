"""Means and bands over seeds, the switch, and what is refused."""

from types import SimpleNamespace

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.datasets import make_blobs
from torch import nn

from flatmin import NoisyDiffusionClassifier
from flatmin.plotting import TrajectoryDisplay
from flatmin.plotting._bands import band

from ._problems import runs


def test_mean_and_range_over_seeds():
    display = TrajectoryDisplay.from_results(runs()).plot()
    x, y = display.lines_["loss", "sgd"].get_data()
    np.testing.assert_array_equal(x, range(3, 9))
    np.testing.assert_allclose(y[1:], 2.0 ** -np.arange(4, 9) + 0.1 + 0.01)
    (path,) = display.bands_["loss", "sgd"].get_paths()
    at = path.vertices[path.vertices[:, 0] == 8]
    assert at[:, 1].min() == pytest.approx(2.0**-8 + 0.1)
    assert at[:, 1].max() == pytest.approx(2.0**-8 + 0.12)


def test_a_shared_warmup_is_drawn_once():
    display = TrajectoryDisplay.from_results(runs()).plot()
    x, y = display.lines_["loss", "warm-up"].get_data()
    np.testing.assert_array_equal(x, range(4))  # and led to the switch
    np.testing.assert_allclose(y, 2.0 ** -np.arange(4) + 0.01)
    assert ("sharpness", "warm-up") not in display.lines_


def test_warmups_that_differ_are_drawn_by_method():
    frame = runs()
    frame.loc[frame["method"] == "sgd", "loss"] += 1
    display = TrajectoryDisplay.from_results(frame).plot(quantities=["loss"])
    assert ("loss", "warm-up") not in display.lines_
    np.testing.assert_array_equal(display.lines_["loss", "gd"].get_xdata(), range(9))


def test_switch_and_quench_are_marked():
    display = TrajectoryDisplay.from_results(runs())
    assert display.switches() == {"switch": [3], "quench": [7]}
    display.plot()
    for ax in display.axes_:
        marks = {line.get_label(): line.get_xdata() for line in ax.get_lines()}
        assert marks["switch"] == [3, 3]
        assert marks["quench"] == [7, 7]
    bare = TrajectoryDisplay.from_results(runs().drop(columns="phase"))
    assert bare.switches() == {}


def test_a_quench_to_a_loss_is_not_drawn():
    """It goes another way from where the noise ended, and ends elsewhere."""
    frame = runs()
    other = frame.query("iteration == 8").assign(phase="quench_loss", iteration=7)
    both = pd.concat([frame, other], ignore_index=True)
    display = TrajectoryDisplay.from_results(both).plot()
    alone = TrajectoryDisplay.from_results(frame).plot()
    assert display.switches() == alone.switches()
    for key, line in alone.lines_.items():
        np.testing.assert_array_equal(
            display.lines_[key].get_xydata(), line.get_xydata()
        )


def test_one_seed_has_no_band_and_no_word_of_seeds():
    display = TrajectoryDisplay.from_results(runs(seeds=(4,))).plot()
    assert display.bands_ == {}
    assert display.axes_[0].get_legend().get_title().get_text() == ""
    many = TrajectoryDisplay.from_results(runs()).plot()
    title = many.axes_[0].get_legend().get_title().get_text()
    assert title == "mean and range of 3 seeds"
    fewer = runs().query("method == 'gd' or seed > 0")
    some = TrajectoryDisplay.from_results(fewer).plot()
    title = some.axes_[0].get_legend().get_title().get_text()
    assert title == "mean and range of 2 to 3 seeds"


def test_the_table_of_a_result_is_taken():
    result = SimpleNamespace(table=runs())
    assert TrajectoryDisplay.from_results(result).history is result.table


def test_columns_of_method_and_seed_are_optional():
    frame = runs(methods=("gd",), seeds=(0,)).drop(columns=["method", "seed", "phase"])
    display = TrajectoryDisplay.from_results(frame).plot()
    assert set(display.lines_) == {
        ("train_score", "run"),
        ("loss", "run"),
        ("sharpness", "run"),
    }
    assert display.axes_[0].get_legend() is None


def test_default_quantities_take_the_freshest_score():
    frame = runs().assign(valid_score=0.3, gradient_norm=1.0)
    display = TrajectoryDisplay.from_results(frame).plot()
    drawn = list(dict.fromkeys(name for name, _ in display.lines_))
    assert drawn == ["valid_score", "loss", "sharpness"]


def test_wide_positive_ranges_are_logarithmic():
    frame = runs()
    frame.loc[frame["iteration"] > 3, "loss"] = 1e-4
    display = TrajectoryDisplay.from_results(frame).plot()
    assert [ax.get_yscale() for ax in display.axes_] == ["linear", "log", "linear"]


def test_a_quench_may_begin_where_the_noise_ends():
    frame = runs().assign(noise_norm=1.0)
    again = frame[frame["iteration"] == 6].assign(phase="quench", end=4.0)
    both = pd.concat([again, frame.query("phase == 'quench'")]).assign(noise_norm=0.0)
    double = pd.concat([frame.query("phase != 'quench'"), both])
    display = TrajectoryDisplay.from_results(double).plot(
        quantities=["end", "noise_norm"]
    )
    np.testing.assert_array_equal(display.lines_["end", "gd"].get_xydata(), [[6, 4]])
    x, y = display.lines_["noise_norm", "gd"].get_data()
    np.testing.assert_array_equal(x, [3, 4, 5, 6, 6, 7, 8])
    np.testing.assert_array_equal(y, [1, 1, 1, 1, 0, 0, 0])
    assert display.switches()["quench"] == [6]


@pytest.mark.parametrize("spread", ["sd", "ci"])
def test_bands_of_a_spread(spread):
    values = np.array([1.0, 2.0, 6.0])
    frame = pd.DataFrame({"iteration": 5, "seed": [0, 1, 2], "loss": values})
    half = values.std(ddof=1)
    if spread == "ci":
        low, high = stats.t.interval(0.95, 2, values.mean(), half / np.sqrt(3))
    else:
        low, high = 3 - half, 3 + half
    row = band(frame, "loss", spread).loc[5]
    np.testing.assert_allclose(row, [3, low, high])


def test_a_curve_ends_with_its_first_seed():
    frame = runs().query("not (method == 'sgd' and seed == 1 and iteration > 5)")
    display = TrajectoryDisplay.from_results(frame).plot(quantities=["loss"])
    assert display.lines_["loss", "sgd"].get_xdata()[-1] == 5
    assert display.lines_["loss", "gd"].get_xdata()[-1] == 8


def test_a_curve_ends_where_the_loss_is_not_finite():
    frame = runs(quench=False)
    frame.loc[(frame["method"] == "sgd") & (frame["iteration"] > 4), "loss"] = np.inf
    display = TrajectoryDisplay.from_results(frame).plot(quantities=["loss"])
    assert display.lines_["loss", "sgd"].get_xdata()[-1] == 4
    # What is finite lies between 2⁻⁶ and 1 + 0.02; matplotlib adds 5 % on both sides.
    low, high = 2.0**-6, 1.02
    wider = (high / low) ** 0.05
    assert display.ax_.get_yscale() == "log"
    assert display.ax_.get_ylim() == pytest.approx((low / wider, high * wider))


def test_methods_and_seeds_may_be_in_the_index():
    one = pd.DataFrame({"iteration": [0, 1], "loss": [2.0, 1.0]})
    keys = [("gd", 0), ("gd", 1), ("sgd", 0), ("sgd", 1)]
    frame = pd.concat([one] * 4, keys=keys, names=["method", "seed"])
    display = TrajectoryDisplay.from_results(frame).plot()
    assert set(display.lines_) == {("loss", "gd"), ("loss", "sgd")}


def test_from_estimator_reads_histories():
    X, y = make_blobs(30, random_state=0)
    fits = [
        NoisyDiffusionClassifier(
            method=method, max_iter=4, warmup={"max_iter": 2}, random_state=seed
        ).fit(X, y)
        for method in ("gd", "sgd")
        for seed in (0, 1)
    ]
    display = TrajectoryDisplay.from_estimator(fits, ["loss"])
    both = [fit.history_.set_index("iteration")["loss"][6] for fit in fits[2:]]
    assert display.lines_["loss", "sgd"].get_ydata()[-1] == np.mean(both)
    assert display.switches() == {"switch": [2]}
    for fit in fits:
        fit.random_state = None  # told apart all the same
    again = TrajectoryDisplay.from_estimator(fits, ["loss"])
    assert again.lines_["loss", "sgd"].get_ydata()[-1] == np.mean(both)
    one = TrajectoryDisplay.from_estimator(fits[0])
    assert {method for _, method in one.lines_} == {"gd"}
    with pytest.raises(TypeError, match=r"have a history_\. Got"):
        TrajectoryDisplay.from_estimator(object())


@pytest.fixture(scope="module")
def fits():
    """Return runs of one method by step size and seed."""
    X, y = make_blobs(30, random_state=0)
    return {
        (lr, seed): NoisyDiffusionClassifier(
            method="sgd", lr=lr, max_iter=3, random_state=seed
        ).fit(X, y)
        for lr in (0.5, 0.001)
        for seed in (0, 1, None)
    }


@pytest.mark.parametrize("seed", [0, None])
def test_runs_of_different_settings_are_no_seeds(fits, seed):
    runs = [fits[0.5, seed], fits[0.001, seed]]
    with pytest.raises(ValueError, match=r"runs of 'sgd' with different lr; pass a "):
        TrajectoryDisplay.from_estimator(runs)
    with pytest.raises(ValueError, match=r"runs of 'all' with different lr; pass a "):
        TrajectoryDisplay.from_estimator({"all": runs})
    labels = ["sgd, a", "sgd, b"]
    display = TrajectoryDisplay.from_estimator(
        dict(zip(labels, runs, strict=True)), ["loss"]
    )
    for label, run in zip(labels, runs, strict=True):
        drawn = display.lines_["loss", label].get_ydata()
        np.testing.assert_array_equal(drawn, run.history_["loss"])
    assert display.axes_[0].get_legend().get_title().get_text() == ""


def test_a_label_may_have_several_seeds(fits):
    display = TrajectoryDisplay.from_estimator(
        {"large": [fits[0.5, 0], fits[0.5, 1]], "small": fits[0.001, 0]}, ["loss"]
    )
    losses = [fits[0.5, seed].history_["loss"] for seed in (0, 1)]
    drawn = display.lines_["loss", "large"].get_ydata()
    np.testing.assert_allclose(drawn, np.mean(losses, axis=0))
    title = display.axes_[0].get_legend().get_title().get_text()
    assert title == "mean and range of 1 to 2 seeds"


def test_one_seed_twice_is_one_run(fits):
    with pytest.raises(ValueError, match=r"'sgd' with random_state=0 twice; leave one"):
        TrajectoryDisplay.from_estimator([fits[0.5, 0], fits[0.5, 0]])
    with pytest.raises(ValueError, match="must hold at least one"):
        TrajectoryDisplay.from_estimator({"sgd": []})
    with pytest.raises(TypeError, match="Labels of estimators must be a string"):
        TrajectoryDisplay.from_estimator({1: fits[0.5, 0]})


class Louder(nn.Linear):
    """Its repr does not tell by how much."""

    def __init__(self, n_inputs, n_outputs, by=2.0):
        super().__init__(n_inputs, n_outputs)
        self.by = by

    def forward(self, x):
        return self.by * super().forward(x)


def test_seeds_may_differ_in_what_no_law_depends_on():
    X, y = make_blobs(30, random_state=0)
    common = {"method": "sgd", "max_iter": 3, "lr": 0.1}
    own = [
        {"module": nn.Linear(2, 3), "record_every": 1},
        {"module": nn.Linear(2, 3), "record_every": 3, "device": "cpu"},
        {"module": nn.Linear(2, 3), "params_init": np.zeros(9)},
    ]
    several = [NoisyDiffusionClassifier(**common, **one).fit(X, y) for one in own]
    display = TrajectoryDisplay.from_estimator(several, ["loss"])
    title = display.axes_[0].get_legend().get_title().get_text()
    assert title == "mean and range of 3 seeds"
    for other in (nn.Sequential(nn.Linear(2, 3)), Louder(2, 3)):
        fit = NoisyDiffusionClassifier(**common, module=other).fit(X, y)
        with pytest.raises(ValueError, match="'sgd' with different module; pass"):
            TrajectoryDisplay.from_estimator([*several, fit])
    alike = [
        NoisyDiffusionClassifier(**common, module=Louder(2, 3, by)).fit(X, y)
        for by in (2.0, 2.0, 50.0)
    ]
    TrajectoryDisplay.from_estimator(alike[:2])
    with pytest.raises(ValueError, match="'sgd' with different module; pass"):
        TrajectoryDisplay.from_estimator(alike)


def test_methods_have_different_colours():
    names = tuple("abcdefg")
    display = TrajectoryDisplay.from_results(runs(names)).plot(quantities=["loss"])
    colours = {
        matplotlib.colors.to_hex(display.lines_["loss", name].get_color())
        for name in names
    }
    assert len(colours) == 7


def test_bad_input():
    with pytest.raises(TypeError, match="must be a DataFrame"):
        TrajectoryDisplay.from_results([1, 2])
    with pytest.raises(ValueError, match="must be 'warmup', 'noise' or 'quench'"):
        TrajectoryDisplay.from_results(runs().assign(phase="rest"))
    with pytest.raises(ValueError, match=r"a column 'iteration'\. Got 1 rows of loss"):
        TrajectoryDisplay.from_results(pd.DataFrame({"loss": [1.0]}))
    display = TrajectoryDisplay.from_results(runs())
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        display.plot(quantities=["los"])
    with pytest.raises(ValueError, match="Unknown spread 'sem'"):
        display.plot(spread="sem")
    twice = pd.concat([runs(), runs()])
    with pytest.raises(ValueError, match="Got several for method 'gd', seed 0"):
        TrajectoryDisplay.from_results(twice).plot()
    apart = runs().query("iteration % 2 == seed % 2 and phase == 'noise'")
    with pytest.raises(ValueError, match="The seeds share no iteration"):
        TrajectoryDisplay.from_results(apart).plot()
    empty = runs()[["method", "seed", "iteration"]]
    with pytest.raises(ValueError, match="nothing to draw"):
        TrajectoryDisplay.from_results(empty).plot()


def test_the_legend_counts_the_seeds_that_are_drawn():
    frame = pd.DataFrame(
        {
            "seed": np.repeat(range(4), 3),
            "iteration": np.tile(range(3), 4),
            "test_score": np.repeat([0.1, 0.2, np.nan, 0.4], 3),
            "loss": np.arange(12.0),
        }
    )
    display = TrajectoryDisplay.from_results(frame)

    def told(*names):
        display.plot(quantities=names, spread="ci")
        return display.axes_[0].get_legend().get_title().get_text()

    assert told("test_score").endswith("of 3 seeds")
    assert told("loss").endswith("of 4 seeds")
    assert told("loss", "test_score").endswith("of 3 to 4 seeds")
    none = frame.assign(test_score=np.nan, method="no test")
    display = TrajectoryDisplay.from_results(
        pd.concat([frame.assign(method="gd"), none], ignore_index=True)
    )
    assert told("test_score").endswith("of 3 seeds")
