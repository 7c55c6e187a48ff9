"""Settings that cannot work: what is required, what was got, what to do."""

import re

import pytest
import torch

from flatmin.noise import METHODS, make_noise_law
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk

from ._problems import generator


def small(n, size):
    """Return a risk of n examples in ``size`` parameters."""
    X = torch.randn(n, size, generator=generator())
    return LinearRegressionRisk(X, X.sum(-1))


# Method, settings, N, D, the sentence.
DO_NOT_FIT = [
    (
        method,
        {"n_components": 5},
        (12, 4),
        f"n_components of {method} must be at most the number of parameters, 4. Got 5.",
    )
    for method in METHODS
    if "n_components" in METHODS[method]._get_param_names()
] + [
    (
        "gld_leading",
        {"batch_size": 4, "n_components": 3},
        (12, 20),
        "n_components of gld_leading must be less than the number of whole "
        "minibatches, 3: their covariance has no higher rank. Got 3; use fewer "
        "components or a smaller batch_size.",
    ),
    (
        "gld_leading",
        {"source": "examples", "n_components": 12},
        (12, 20),
        "n_components of gld_leading must be less than the number of examples, 12: "
        "their covariance has no higher rank. Got 12",
    ),
    (
        "gld_leading",
        {"batch_size": 12},
        (12, 4),
        "gld_leading needs at least two whole minibatches to have a covariance. Got 1 "
        "from 12 examples with batch_size=12; use a smaller batch_size",
    ),
    (
        "gld_leading",
        {"batch_size": 13},
        (12, 4),
        "Got 0 from 12 examples with batch_size=13",
    ),
    ("gld_leading", {}, (1, 4), "Got 1 from 1 examples"),
    ("gld_leading", {"source": "examples"}, (1, 4), "needs at least two examples"),
    (
        "bernoulli",
        {"batch_size": 13},
        (12, 4),
        "batch_size of bernoulli must be at most the number of examples, 12: m/N is a "
        "probability. Got 13; use a smaller batch.",
    ),
    *(
        (
            method,
            {"batch_size": 12, "match": match, **more},
            (12, 4),
            f"match='{match}' of {method} needs noise",
        )
        for match in ("trace", "curvature")
        for method, more in (
            ("bernoulli", {}),
            ("sgd", {"sampling": "without_replacement"}),
        )
    ),
    *(
        (
            "sgd",
            {"batch_size": 13, "sampling": sampling},
            (12, 4),
            "batch_size of sgd must be at most the number of examples, 12, with "
            f"sampling='{sampling}'. Got 13; use sampling='replacement' or a smaller",
        )
        for sampling in ("without_replacement", "epoch")
    ),
]


@pytest.mark.parametrize(("method", "settings", "shape", "sentence"), DO_NOT_FIT)
def test_settings_that_do_not_fit_the_risk(method, settings, shape, sentence):
    law = make_noise_law(method, **settings)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        law.check(small(*shape))


@pytest.mark.parametrize(
    ("method", "settings", "shape"),
    [
        ("gld_hessian", {"n_components": 4}, (12, 4)),
        ("gld_shuffled", {"n_components": 4}, (12, 4)),
        ("gld_random_subspace", {"n_components": 4}, (12, 4)),
        ("gld_leading", {"batch_size": 2, "n_components": 4}, (12, 4)),
        ("gld_leading", {"batch_size": 4, "n_components": 2}, (12, 20)),
        ("gld_leading", {"batch_size": 6}, (12, 20)),
        ("gld_leading", {"source": "examples", "n_components": 11}, (12, 20)),
        ("gld_leading", {}, (2, 4)),
        ("sgd", {"batch_size": 12, "sampling": "epoch"}, (12, 4)),
        ("sgd", {"batch_size": 50}, (12, 4)),
        ("gld_full", {"batch_size": 50}, (12, 4)),
        ("gld_full", {}, (1, 4)),
    ],
)
def test_settings_that_just_fit(method, settings, shape):
    law, risk, rng = make_noise_law(method, **settings), small(*shape), generator()
    law.check(risk)
    theta = 2 * torch.ones(risk.n_params)
    state = law.refresh(risk, theta, rng)
    X = risk.X.double()
    rows = 2 * X * X.sum(1, keepdim=True)  # of residuals X θ - y = X 1
    trace = float(law.trace(risk, theta, state))
    if settings.get("sampling") == "epoch":  # one batch, of all examples
        assert trace == 0
    elif method != "gld_leading":
        m = settings.get("batch_size", min(20, len(X)))
        sgd = float(rows.var(0, correction=0).sum()) / m
        assert trace == pytest.approx(sgd, rel=1e-5)
    draws = [law.noisy_gradient(risk, theta, state, rng)[1] for _ in range(200)]
    noise = torch.stack(draws).double() - rows.mean(0)
    rounding = 1e-5 * float(rows.norm())
    assert float(noise.mean(0).norm()) <= 4 * (trace / 200) ** 0.5 + rounding
    size = float(noise.square().sum(1).mean())
    assert 0.7 * trace <= size <= 1.4 * trace + rounding**2


NUMBERS = {
    "noise_scale": (
        [-1, float("nan"), float("inf"), "1", None, True],
        "finite number of at",
    ),
    "sigma": (
        [-1e-3, float("nan"), float("inf"), "1", None, True],
        "finite number of at",
    ),
    "temperature": (
        [-1e-3, float("nan"), float("inf"), "1", True],
        "finite number of at",
    ),
    "tol": (
        [0, -1e-3, float("nan"), float("inf"), None, True],
        "finite number above 0",
    ),
    "batch_size": ([0, -3, 2.5, "3", True], "integer of at least 1, or None"),
    "n_components": ([0, -3, 2.5, "3", True], "integer of at least 1, or None"),
    "n_substeps": ([0, -3, 2.5, "3", None, True], "integer of at least 1. "),
    "alpha": ([1.0, 0.5, 2.1, float("nan"), "1", None, True], "above 1"),
    "flip_probability": ([-0.1, 1.1, float("nan"), "1", None, True], "number from 0"),
    "rho": ([-1, float("nan"), float("inf"), "1", None, True], "finite number of at"),
    "match_every": ([0, -3, 2.5, "3", None, True], "integer of at least 1. "),
    "refresh_every": ([0, -3, 2.5, "3", None, True], "integer of at least 1. "),
}


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (method, setting)
        for method, law in METHODS.items()
        for setting in law._get_param_names()
        if setting in NUMBERS
    ],
)
def test_numbers_out_of_range(method, setting):
    values, requirement = NUMBERS[setting]
    if (method, setting) == ("gld_const", "sigma"):
        values = [value for value in values if value is not None]  # None is 1e-3
    for value in values:
        law = make_noise_law(method, **{setting: value})
        sentence = f"{setting} of {method} must be (an? )?{requirement}.*Got {value!r}"
        with pytest.raises(ValueError, match=sentence):
            law.check(small(12, 4))


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_centred_is_a_flag(value):
    law = make_noise_law("label_noise", centred=value)
    sentence = f"centred of label_noise must be True or False. Got {value!r}."
    with pytest.raises(TypeError, match=re.escape(sentence)):
        law.check(small(12, 4))


@pytest.mark.parametrize(
    ("method", "setting", "options"),
    [
        ("sgd", "sampling", ("replacement", "without_replacement", "epoch")),
        ("gld_leading", "source", ("minibatches", "examples")),
        *(
            (name, "match", ("trace", "none", "curvature", "frobenius"))
            for name, law in METHODS.items()
            if "match" in law._get_param_names()
            and name not in {"gld_hessian", "alpha_stable"}
        ),
        ("alpha_stable", "match", ("trace", "none")),
        (
            "gld_hessian",
            "match",
            ("trace", "hessian_trace", "none", "curvature", "frobenius"),
        ),
        ("gradient_penalty", "norm", ("full", "batches")),
    ],
)
def test_options(method, setting, options):
    for option in options:
        make_noise_law(method, **{setting: option}).check(small(50, 4))
    for wrong in ("nothing", None, 3):
        law = make_noise_law(method, **{setting: wrong})
        sentence = f"{setting} of {method} must be one of {options}. Got {wrong!r}."
        with pytest.raises(ValueError, match=re.escape(sentence)):
            law.check(small(12, 4))


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_matching_the_trace_of_the_hessian_needs_a_positive_one(curvature):
    def bent(outputs, targets):
        return curvature * outputs[:, 0] ** 2 + targets[:, 0] * outputs[:, 0]

    module = torch.nn.Linear(1, 1, bias=False)
    risk = EmpiricalRisk(module, bent, torch.ones(5, 1), torch.arange(5.0)[:, None])
    law = make_noise_law("gld_hessian", match="hessian_trace")
    law.check(risk)
    with pytest.raises(
        ValueError,
        match=r"Tr\(H\), which must be positive. Got (-2|0) at .* match='trace'",
    ):
        law.refresh(risk, risk.params(), generator())


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("gld_hesian", {}, "Unknown method 'gld_hesian'; did you mean 'gld_hessian'?"),
        ("GLD_full", {}, "Unknown method 'GLD_full'; did you mean 'gld_full'?"),
        ("langevin", {}, "Unknown method 'langevin'"),
        (None, {}, "Unknown method None"),
        (
            "gld_full",
            {"batchsize": 3},
            "Unknown setting of gld_full 'batchsize'; did you mean 'batch_size'? "
            "There are: 'batch_size', 'match', 'match_every', 'noise_scale'.",
        ),
        (
            "gd",
            {"noise_scale": 2},
            "Unknown setting of gd 'noise_scale'. There are: no",
        ),
    ],
)
def test_unknown_names(name, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_noise_law(name, **settings)


def test_the_unknown_method_comes_with_the_list():
    with pytest.raises(ValueError, match="There are: ") as caught:
        make_noise_law("langevin")
    assert all(repr(name) in str(caught.value) for name in METHODS)
