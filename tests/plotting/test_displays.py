"""What holds for every Display."""

import pickle
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from flatmin.plotting import (
    AlignmentDisplay,
    LandscapeDisplay,
    SharpnessDisplay,
    SpectrumDisplay,
    TrajectoryDisplay,
)
from flatmin.plotting._figure import line_styles

from ._problems import displays, runs

NAMES = sorted(displays())
PANELS = {"spectrum": 2, "curves": 2, "trajectory": 3}


@pytest.fixture(params=NAMES)
def case(request):
    """A Display that is not drawn yet, and its number of panels."""
    return displays()[request.param], PANELS.get(request.param, 1)


def test_import_is_cheap():
    code = "import sys, flatmin.plotting; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "flatmin.plotting" in run.stdout.split()
    assert not {"matplotlib", "seaborn"} & set(run.stdout.split())


def test_plot_returns_the_display_with_what_it_drew(case):
    display, n = case
    assert not hasattr(display, "figure_")
    assert display.plot() is display
    assert display.axes_.shape == (n,)
    assert display.ax_ is display.axes_[0]
    assert isinstance(display.figure_, Figure)
    assert all(ax.figure is display.figure_ for ax in display.axes_)
    assert all(ax.has_data() for ax in display.axes_)
    assert display.axes_[-1].get_xlabel()
    assert all(ax.get_ylabel() for ax in display.axes_)


def test_given_axes_are_used(case):
    display, n = case
    figure, axes = plt.subplots(1, n, squeeze=False)
    display.plot(axes[0, 0] if n == 1 else axes)
    assert display.figure_ is figure
    assert list(display.axes_) == list(axes[0])
    assert plt.get_fignums() == [figure.number]


def test_one_axes_is_cut_up(case):
    display, n = case
    figure, (left, right) = plt.subplots(1, 2)
    display.plot(right)
    assert display.figure_ is figure
    assert not left.has_data()
    starts = [ax.get_position().x0 for ax in display.axes_]
    assert min(starts) >= right.get_position().x0 - 1e-9
    assert len(display.axes_) == n


def test_what_is_not_axes_is_refused(case):
    display, n = case
    with pytest.raises(TypeError, match=r"matplotlib Axes\. Got 3"):
        display.plot(3)
    _, axes = plt.subplots(1, n + 1)
    with pytest.raises(ValueError, match=f"{n} panels. Got {n + 1} axes"):
        display.plot(axes)


@pytest.mark.parametrize(
    "compute",
    [
        SpectrumDisplay.from_estimator,
        AlignmentDisplay.from_estimator,
        SharpnessDisplay.from_estimator,
        LandscapeDisplay.from_estimator,
        lambda model, ax: LandscapeDisplay.from_solutions(model, None, ax=ax),
    ],
)
def test_it_is_refused_before_anything_is_computed(compute):
    with pytest.raises(TypeError, match="must hold matplotlib Axes"):
        compute("no model", ax="no axes")


def test_axes_without_a_place_are_not_cut_up():
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(ValueError, match="cannot be cut up"):
        displays()["spectrum"].plot(ax)


def test_a_pickle_holds_the_numbers(case):
    display, n = case
    display.plot()
    copy = pickle.loads(pickle.dumps(display))
    assert not hasattr(copy, "figure_")
    assert len(plt.get_fignums()) == 1
    assert vars(copy).keys() == {k for k in vars(display) if not k.endswith("_")}
    copy.plot()
    assert copy.axes_.shape == (n,)
    for old, new in zip(display.axes_, copy.axes_, strict=True):
        assert old.get_xlim() == new.get_xlim()
        assert old.get_ylim() == new.get_ylim()


@pytest.mark.parametrize("size", [(3, 2), (10, 7)])
def test_text_stays_inside_the_figure(case, size):
    display, _ = case
    figure = plt.figure(figsize=size, layout="constrained")
    display.plot(figure.add_subplot())
    figure.canvas.draw()
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    for ax in display.axes_:
        for axis in (ax.xaxis, ax.yaxis):
            label = axis.label.get_window_extent(renderer)
            if not axis.label.get_text():
                continue
            assert label.x0 >= -1
            assert label.y0 >= -1
            assert label.x1 <= frame.x1 + 1
            assert label.y1 <= frame.y1 + 1


@pytest.mark.parametrize("size", [(3, 2), (10, 7)])
def test_a_long_legend_stays_off_the_data_and_inside(size):
    names = tuple(f"gld_some_method_{i}" for i in range(10))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    TrajectoryDisplay(runs(names)).plot(ax, quantities=["loss"])
    figure.canvas.draw()
    box = ax.get_legend().get_window_extent()
    assert box.y0 >= ax.get_window_extent().y1
    assert box.y1 <= figure.bbox.y1
    assert box.x1 <= figure.bbox.x1
    assert ax.get_window_extent().height > 0.25 * figure.bbox.height


def test_without_a_layout_the_legend_is_inside():
    _, ax = plt.subplots()
    TrajectoryDisplay(runs()).plot(ax, quantities=["loss"])
    box = ax.get_legend().get_window_extent()
    assert ax.get_window_extent().padded(1).containsx(box.x1)
    assert ax.get_window_extent().padded(1).containsy(box.y1)


def test_small_panels_have_small_text():
    display = displays()["section"]
    sizes = []
    for size in [(3, 2), (10, 7)]:
        _, ax = plt.subplots(figsize=size)
        display.plot(ax)
        display.plot(ax)  # a second drawing does not shrink it again
        sizes.append(ax.xaxis.label.get_size())
    assert sizes[0] == pytest.approx(10 * 2.325 / 2.8)
    assert sizes[1] == 10


def test_lines_can_be_told_apart():
    styles = {(look["color"], look["linestyle"]) for look in line_styles(28)}
    assert len(styles) == 28
    with pytest.raises(ValueError, match="At most 28 lines"):
        line_styles(29)


def test_arrays_are_kept_as_they_came():
    values = np.array([2.0, 1.0])
    display = SpectrumDisplay(values)
    assert display.hessian_eigenvalues is values
