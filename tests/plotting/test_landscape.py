"""Sections against closed forms, filter normalisation, projected trajectories."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from skorch import NeuralNetRegressor
from torch import nn

from flatmin import NoisyDiffusionClassifier
from flatmin.plotting import LandscapeDisplay
from flatmin.plotting._directions import filter_normalised, plane_through, project
from flatmin.risk.network.layout import ParameterLayout

from ._problems import HESSIAN, ON, X, Y, line, risk

W = np.array([0.3, -0.2])


def eigenvectors():
    values, vectors = np.linalg.eigh(HESSIAN)
    vectors = vectors[:, ::-1] * np.sign(
        np.take_along_axis(vectors, abs(vectors).argmax(0)[None], 0)[:, ::-1]
    )
    return values[::-1], vectors


def test_plane_of_eigenvectors_of_a_quadratic():
    display = LandscapeDisplay.from_estimator(line(), **ON, n_points=5)
    values, U = eigenvectors()
    reach = np.sqrt(2 / values[0])
    np.testing.assert_allclose(display.x, np.linspace(-reach, reach, 5))
    np.testing.assert_allclose(display.y, display.x)
    grid = np.stack(np.meshgrid(display.x, display.y), -1)  # x along the rows
    np.testing.assert_allclose(display.values, risk(W + grid @ U.T), rtol=1e-6)
    assert f"{values[1]:.3g}" in display.ax_.get_ylabel()
    assert display.ax_.get_aspect() == 1


def test_line_of_a_quadratic():
    display = LandscapeDisplay.from_estimator(
        line(), **ON, n_directions=1, n_points=7, span=2.0
    )
    _, U = eigenvectors()
    step = np.linspace(-2, 2, 7)
    np.testing.assert_allclose(display.line_.get_xdata(), step)
    expected = risk(W + step[:, None] * U[:, 0])
    np.testing.assert_allclose(display.line_.get_ydata(), expected, rtol=1e-6)


def test_covariance_and_own_directions():
    display = LandscapeDisplay.from_estimator(
        line(), **ON, directions="covariance", n_directions=1, n_points=3, span=1.0
    )
    gradients = 2 * (X @ W - Y)[:, None] * X
    v = np.linalg.eigh(np.cov(gradients.T, ddof=0))[1][:, -1]
    ends = sorted([risk(W - v), risk(W + v)])
    np.testing.assert_allclose(sorted(display.values[[0, 2]]), ends, rtol=1e-6)
    own = LandscapeDisplay.from_estimator(
        line(), **ON, directions=[2.0, 1.0], n_points=3, span=1.0
    )
    expected = [risk(W - [2, 1]), risk(W), risk(W + np.array([2, 1]))]
    np.testing.assert_allclose(own.values, expected)


def test_random_directions_are_normalised_by_filter():
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))
    layout = ParameterLayout.of(conv)
    theta = layout.flatten({n: p.detach() for n, p in conv.named_parameters()})
    d = filter_normalised(theta, layout, torch.Generator().manual_seed(0))
    raw = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    for name, part in layout.unflatten(d).items():
        weight, drawn = conv.get_parameter(name), layout.unflatten(raw)[name]
        if weight.ndim == 1:
            assert (part == 0).all()
            continue
        for own, filter_, gaussian in zip(part, weight, drawn, strict=True):
            expected = gaussian * filter_.norm() / gaussian.norm()
            torch.testing.assert_close(own, expected.detach())


def test_a_rescaled_relu_network_has_the_same_section():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    other = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        for layer in (net[0], other[0]):
            layer.bias.zero_()
        other[0].weight *= 10
        other[2].weight /= 10
    sections = [
        LandscapeDisplay.from_estimator(
            one, **ON, directions="random", n_points=3, random_state=0
        ).values
        for one in (net, other)
    ]
    np.testing.assert_allclose(sections[0], sections[1])
    assert np.ptp(sections[0]) > 0.1


def test_random_sections_follow_the_seed():
    losses = [
        LandscapeDisplay.from_estimator(
            line(), **ON, directions="random", n_points=3, random_state=seed
        ).values
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert not np.allclose(losses[0], losses[2])


def test_plane_through_three_solutions():
    solutions = np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 4.0]])
    display = LandscapeDisplay.from_solutions(
        line(), solutions, **ON, margin=0.5, n_points=5
    )
    np.testing.assert_allclose(display.points, [[0, 0], [2, 0], [1, 3]], atol=1e-12)
    np.testing.assert_allclose(display.x[[0, -1]], [-1, 3])
    np.testing.assert_allclose(display.y[[0, -1]], [-1.5, 4.5])
    grid = np.stack(np.meshgrid(display.x, display.y), -1) + solutions[0]
    np.testing.assert_allclose(display.values, risk(grid))
    names = [text.get_text() for text in display.ax_.texts]
    assert names == [r"$\theta_1$", r"$\theta_2$", r"$\theta_3$"]


def test_plane_is_orthonormal_in_many_dimensions():
    points = np.random.default_rng(0).normal(size=(3, 50))
    A = plane_through(points)
    np.testing.assert_allclose(A.T @ A, np.eye(2), atol=1e-12)
    coordinates, share = project(points, points[0], A)
    np.testing.assert_allclose(coordinates @ A.T + points[0], points)
    assert share == pytest.approx(1)


def test_projected_trajectory_of_three_points():
    path = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [3.0, 2.0, 2.0]])
    A = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # not orthogonal
    coordinates, share = project(path, np.zeros(3), A)
    np.testing.assert_allclose(coordinates, [[0, 0], [-1, 2], [1, 2]], atol=1e-12)
    inside = path[:, :2]
    expected = inside.var(0).sum() / path.var(0).sum()
    assert share == pytest.approx(expected)


def test_a_trajectory_is_drawn_with_its_share():
    path = np.array([[2.0, 1.0], [1.0, 0.5], [0.0, 0.0]]) + W
    display = LandscapeDisplay.from_estimator(line(), **ON, n_points=3, trajectory=path)
    _, U = eigenvectors()
    drawn = np.stack(display.trajectory_line_.get_data(), 1)
    np.testing.assert_allclose(drawn, (path - W) @ U, atol=1e-6)
    assert display.share == pytest.approx(1)
    # The box of path and model, with 0.15 of the longer side around it.
    shown = np.concatenate([drawn, np.zeros((1, 2))])
    longest = np.ptp(shown, axis=0).max()
    for grid, points in zip((display.x, display.y), shown.T, strict=True):
        half = max(np.ptp(points), longest / 2) / 2 + 0.15 * longest
        middle = (points.max() + points.min()) / 2
        assert grid[[0, -1]] == pytest.approx([middle - half, middle + half], rel=1e-6)
    wide = LandscapeDisplay.from_estimator(line(), **ON, trajectory=path, span=3.0)
    assert (wide.x[0], wide.x[-1]) == (-3, 3)
    (text,) = display.ax_.get_legend().get_texts()
    assert text.get_text() == "trajectory, 100% of its variance in the plane"


def test_principal_directions_hold_most_of_a_trajectory():
    path = np.array([[2.0, 1.0], [1.0, 0.4], [0.0, 0.0]]) + W
    along = LandscapeDisplay.from_estimator(
        line(), **ON, directions="trajectory", n_directions=1, trajectory=path
    )
    spread = np.linalg.svd(path - path.mean(0), compute_uv=False) ** 2
    assert along.share == pytest.approx(spread[0] / spread.sum())


def test_losses_that_are_not_finite_stay_white():
    step = np.linspace(-1, 1, 5)
    loss = np.ones((5, 5)) + step**2
    loss[0, 0], loss[4, 4] = np.inf, np.nan
    display = LandscapeDisplay(step, loss, y=step).plot()
    assert display.contours_.zmax == 2
    with pytest.raises(ValueError, match="take a smaller span"):
        LandscapeDisplay([0.0, 1.0], [np.nan, np.inf]).plot()


def test_a_flat_plane_can_be_drawn():
    step = np.linspace(-1, 1, 3)
    display = LandscapeDisplay(step, np.full((3, 3), 3.0), y=step).plot()
    display.figure_.canvas.draw()
    # One colour, the lowest, and levels that are told apart a millionth above it.
    assert (display.contours_.zmin, display.contours_.zmax) == (3, 3)
    np.testing.assert_allclose(display.contours_.levels[[0, -1]], [3, 3 * (1 + 1e-6)])


def test_wide_ranges_have_logarithmic_levels():
    step = np.linspace(0, 3, 4)
    loss = np.exp(step + step[:, None])
    display = LandscapeDisplay(step, loss, y=step).plot()
    ratios = display.contours_.levels[1:] / display.contours_.levels[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    display.plot(log=False)
    gaps = np.diff(display.contours_.levels)
    np.testing.assert_allclose(gaps, gaps[0])


def test_a_loss_that_falls_to_zero_does_not_blacken_the_picture():
    step = np.linspace(-1, 1, 5)
    loss = step**2 + step[:, None] ** 2
    loss[2, 2] = 0.0
    loss[2, 3] = 1e-30
    display = LandscapeDisplay(step, loss, y=step).plot()
    levels = display.contours_.levels
    np.testing.assert_allclose(levels[[0, -1]], [2e-6, 2])
    np.testing.assert_allclose(levels[1:] / levels[:-1], levels[1] / levels[0])
    assert not display.contours_.get_array().mask.any()
    assert display.values[2, 2] == 0.0  # the numbers stay
    with pytest.raises(ValueError, match=r"a value above 0\. Got none above 0"):
        LandscapeDisplay(step, 0 * loss, y=step).plot(log=True)


def test_a_step_has_a_mark_and_thousands_have_some():
    step = np.linspace(-1, 1, 5)
    for n, every in [(5, 1), (900, 30)]:
        path = np.linspace([-0.5, -0.5], [0.5, 0.5], n)
        display = LandscapeDisplay(step, np.ones((5, 5)), y=step, trajectory=path)
        assert display.plot().trajectory_line_.get_markevery() == every


def test_another_quantity():
    X_blobs, y_blobs = make_blobs(30, random_state=0)
    clf = NoisyDiffusionClassifier(max_iter=5, random_state=0).fit(X_blobs, y_blobs)
    data = {"directions": "random", "random_state": 0, "n_points": 3, "span": 2.0}
    display = LandscapeDisplay.from_estimator(clf, metric="accuracy", **data)
    assert display.values[1, 1] == clf.score(X_blobs, y_blobs)
    assert 0 <= display.values.min() < display.values.max() <= 1
    assert display.colorbar_.ax.get_ylabel() == "accuracy"

    def size(risk, theta):
        return theta.norm()

    own = LandscapeDisplay.from_estimator(clf, metric=size, **data)
    assert own.values[1, 1] == pytest.approx(np.linalg.norm(clf.params_), rel=1e-6)
    assert own.colorbar_.ax.get_ylabel() == "size"
    binary = nn.Linear(2, 1, bias=False)
    found = LandscapeDisplay.from_estimator(
        binary,
        X,
        np.array([[1.0], [0.0], [1.0], [0.0]]),
        loss="binary_cross_entropy",
        metric="accuracy",
        **data,
    )
    said = (binary(torch.tensor(X).float()) > 0).numpy().ravel()
    wanted = np.mean(said == np.array([True, False, True, False]))
    assert found.values[1, 1] == wanted


@pytest.mark.parametrize(
    ("metric", "error", "match"),
    [
        ("accuracy", ValueError, "needs classes as targets.* 'squared_error'"),
        ("acuracy", ValueError, "did you mean 'accuracy'"),
        (3, TypeError, r"metric must be a function of \(risk, theta\). Got 3"),
        (lambda risk, theta: None, TypeError, "must return a number. Got None"),
    ],
)
def test_what_is_no_metric(metric, error, match):
    with pytest.raises(error, match=match):
        LandscapeDisplay.from_estimator(line(), **ON, metric=metric)


def test_a_surface():
    step = np.linspace(-1, 1, 5)
    loss = step**2 + step[:, None] ** 2
    path = np.array([[-1.0, 0.5], [0.0, 0.0]])
    display = LandscapeDisplay(step, loss, y=step, trajectory=path)
    display.plot(kind="surface", log=False)
    assert display.ax_.name == "3d"
    # The path lies on the surface.
    x, y, z = display.trajectory_line_.get_data_3d()
    np.testing.assert_allclose(z, x**2 + y**2)
    display.figure_.canvas.draw()
    ax = plt.figure().add_subplot(projection="3d")
    assert display.plot(ax, kind="surface").ax_ is ax
    assert "log" in ax.get_zlabel()
    with pytest.raises(ValueError, match="three dimensions for a surface"):
        display.plot(plt.figure().add_subplot(), kind="surface")
    with pytest.raises(ValueError, match="is for a plane"):
        LandscapeDisplay(step, step**2).plot(kind="surface")
    with pytest.raises(ValueError, match="did you mean 'surface'"):
        display.plot(kind="surfaces")


def test_every_kind_of_model():
    X_blobs, y_blobs = make_blobs(20, random_state=0)
    clf = NoisyDiffusionClassifier(max_iter=2, random_state=0).fit(X_blobs, y_blobs)
    display = LandscapeDisplay.from_estimator(clf, n_points=3)
    assert display.values[1, 1] == pytest.approx(
        clf.history_["loss"].iloc[-1], rel=1e-5
    )
    X32, y32 = X.astype("float32"), Y[:, None].astype("float32")
    net = NeuralNetRegressor(nn.Linear(2, 1), train_split=None, max_epochs=1, verbose=0)
    net.fit(X32, y32)
    display = LandscapeDisplay.from_estimator(net, X32, y32, n_points=3)
    expected = np.square(net.predict(X32) - y32).mean()
    assert display.values[1, 1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"directions": "hesian"}, "did you mean 'hessian'"),
        ({"n_directions": 3}, "n_directions must be 1 or 2. Got 3"),
        ({"directions": "trajectory"}, "needs a trajectory"),
        ({"n_points": 1}, "n_points must be an integer of at least 2"),
        ({"span": 0.0}, "span must be a finite number above 0"),
        ({"directions": [1.0, 2.0, 3.0]}, "columns of 2 numbers"),
        ({"directions": [[1.0, 2.0], [1.0, 2.0]]}, "linearly independent"),
        ({"trajectory": [[1.0, 2.0, 3.0]]}, r"shape \(n_steps, 2\)"),
    ],
)
def test_bad_input(options, match):
    with pytest.raises(ValueError, match=match):
        LandscapeDisplay.from_estimator(line(), **ON, **options)


def test_bad_solutions():
    with pytest.raises(ValueError, match=r"shape \(3, 2\). Got \(2, 2\)"):
        LandscapeDisplay.from_solutions(line(), np.eye(2), **ON)
    on_a_line = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    with pytest.raises(ValueError, match="do not lie on a line"):
        LandscapeDisplay.from_solutions(line(), on_a_line, **ON)
    with pytest.raises(
        ValueError, match="margin must be a finite number of at least 0"
    ):
        LandscapeDisplay.from_solutions(line(), np.eye(3, 2), **ON, margin=-1)
    with pytest.raises(ValueError, match=r"shape \(4,\). Got \(3,\)"):
        LandscapeDisplay(np.arange(4), np.arange(3)).plot()
