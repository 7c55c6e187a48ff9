"""Laws of one's own, by name and as classes; their registry and that of measures."""

import pytest
import torch

from flatmin import measures
from flatmin.dynamics import simulate
from flatmin.measures import SHARPNESS_MEASURES, register_measure
from flatmin.noise import METHODS, GLDFull, NoiseLaw, make_noise_law, register_law
from flatmin.risk import QuadraticRisk

RISK = QuadraticRisk(torch.eye(2), torch.tensor([[1.0, 0.5], [-1.0, -0.5]]))


class Doubled(GLDFull):
    name = "doubled"

    def noisy_gradient(self, risk, theta, state, rng):
        loss, noisy = super().noisy_gradient(risk, theta, state, rng)
        return loss, 2 * noisy - risk.gradient(theta)


def height(risk, theta):
    return theta[0]


@pytest.fixture(autouse=True)
def tables_as_before():
    before = dict(METHODS), dict(SHARPNESS_MEASURES)
    yield
    for table, entries in zip((METHODS, SHARPNESS_MEASURES), before, strict=True):
        table.clear()
        table.update(entries)


def test_a_registered_law_has_a_name():
    with pytest.raises(ValueError, match="Unknown method 'doubled'"):
        make_noise_law("doubled")
    assert register_law(Doubled) is Doubled
    assert register_law(Doubled) is Doubled, "the same one again"
    law = make_noise_law("doubled", batch_size=3)
    assert type(law) is Doubled
    assert law.batch_size == 3


def test_a_class_is_a_law_without_a_name():
    assert type(make_noise_law(Doubled)) is Doubled
    with pytest.raises(ValueError, match="Unknown setting of doubled 'sigma'"):
        make_noise_law(Doubled, sigma=1.0)
    start = torch.zeros(2)
    options = {"lr": 0.1, "n_iter": 1, "n_chains": 4, "rng": 0}
    found = simulate(RISK, [Doubled, "gld_full"], start, **options)
    # g₀ = 0 at the start: the step is the noise alone, twice as long.
    torch.testing.assert_close(found["doubled"].theta, 2 * found["gld_full"].theta)
    with pytest.raises(TypeError, match=r"a subclass of NoiseLaw\. Got <class"):
        simulate(RISK, int, start, **options)


def test_a_rewritten_class_takes_the_place_of_the_first():
    def written():
        class Rewritten(Doubled):
            name = "rewritten"

        return Rewritten

    first, second = written(), written()
    register_law(first)
    register_law(second)
    assert METHODS["rewritten"] is second


@pytest.mark.parametrize(
    ("law", "error", "message"),
    [
        (GLDFull(), TypeError, r"a subclass of NoiseLaw. Got GLDFull\(\)"),
        (int, TypeError, "a subclass of NoiseLaw. Got <class 'int'>"),
        (
            type("Half", (NoiseLaw,), {"name": "half"}),
            TypeError,
            "Half, which lacks covariance, noisy_gradient",
        ),
        (type("Nameless", (GLDFull,), {}), ValueError, "'gld_full', which is flatmin"),
        (type("Empty", (GLDFull,), {"name": ""}), ValueError, "not be empty"),
        (type("Odd", (GLDFull,), {"name": 3}), TypeError, "a string. Got 3"),
    ],
)
def test_what_is_no_law(law, error, message):
    before = dict(METHODS)
    with pytest.raises(error, match=message):
        register_law(law)
    assert before == METHODS


def test_a_registered_measure_has_a_name():
    assert register_measure(height) is height
    register_measure(measures.sam_sharpness, "again")
    assert SHARPNESS_MEASURES["height"] is height
    with pytest.raises(ValueError, match=r"'trace', which is flatmin\.measures"):
        register_measure(height, "trace")
    with pytest.raises(TypeError, match=r"a function of \(risk, theta\). Got 3"):
        register_measure(3)
    with pytest.raises(TypeError, match="too many positional"):
        register_measure(lambda risk: 0)
