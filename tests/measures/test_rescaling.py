"""Rescaled layers: the same function, and what is refused."""

import pytest
import torch
from torch import nn

from flatmin.measures import (
    adaptive_expected_sharpness,
    asam_sharpness,
    fisher_rao_norm,
    max_eigenvalue,
    rescale_layers,
)
from flatmin.risk import EmpiricalRisk, QuadraticRisk

from ._problems import randn


def risk(*layers, shape=(4,), dtype=torch.float64, n_out=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(*(layer() for layer in layers))
        for parameter in module.parameters():
            parameter.data += 0.1  # no bias is 0
    X, y = randn(12, *shape), torch.arange(12) % n_out
    return EmpiricalRisk(module, "cross_entropy", X, y, dtype=dtype)


def mlp(activation=nn.ReLU, **options):
    return risk(
        lambda: nn.Linear(4, 6),
        activation,
        lambda: nn.Linear(6, 5),
        activation,
        lambda: nn.Linear(5, 3),
        **options,
    )


def convolutional():
    return risk(
        lambda: nn.Conv2d(1, 3, 3),
        nn.PReLU,
        lambda: nn.MaxPool2d(2),
        lambda: nn.Conv2d(3, 2, 2, bias=False),
        nn.Flatten,
        lambda: nn.Linear(2, 3),
        shape=(1, 6, 6),
    )


CASES = {
    "neighbours": (mlp, {"0": 5.0, "2": 0.2}),
    "over a layer between": (mlp, {"0": 0.01, "4": 100.0}),
    "three": (mlp, {"0": 2.0, "2": 4.0, "4": 0.125}),
    "leaky": (lambda: mlp(nn.LeakyReLU), {"2": 1.001, "4": 1 / 1.001}),
    "convolutions": (convolutional, {"0": 3.0, "5": 1 / 3.0}),
    "single": (lambda: mlp(dtype=torch.float32), {"0": 8.0, "2": 0.125}),
    "nothing": (mlp, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays(name):
    build, factors = CASES[name]
    problem = build()
    theta = problem.params()
    before = theta.clone()
    found = rescale_layers(problem, theta, factors)
    torch.testing.assert_close(problem.outputs(found), problem.outputs(theta))
    assert torch.equal(theta, before)
    old, new = problem.layout.unflatten(theta), problem.layout.unflatten(found)
    for layer, factor in factors.items():
        weight = f"{layer}.weight"
        torch.testing.assert_close(new[weight], factor * old[weight])


def test_what_it_is_for():
    problem = mlp()
    theta = problem.params()
    found = rescale_layers(problem, theta, {"0": 0.1, "2": 10.0})
    assert float(max_eigenvalue(problem, found)) > 5 * float(
        max_eigenvalue(problem, theta)
    )
    for measure in (fisher_rao_norm, asam_sharpness, adaptive_expected_sharpness):
        same = float(measure(problem, theta))
        assert float(measure(problem, found)) == pytest.approx(same, rel=1e-8)


@pytest.mark.parametrize(
    ("build", "factors", "sentence"),
    [
        (lambda: mlp(nn.Tanh), {"0": 2.0, "2": 0.5}, "must leave the function"),
        (lambda: mlp(nn.Tanh), {"0": 1 + 1e-14, "2": 1 - 1e-14}, "must leave the func"),
        (mlp, {"0": 2.0, "2": 0.4}, "their product must be 1"),
        (mlp, {"0": 2.0}, "their product must be 1"),
        (mlp, {"2": -1.0}, r"factors\['2'\] must be .* Got -1.0"),
        (mlp, {"1": 2.0}, r"Got '1'; there are '0', '2', '4'"),
        (mlp, {"0.weight": 2.0}, r"Got '0.weight'; there are '0'"),
    ],
)
def test_what_is_refused(build, factors, sentence):
    problem = build()
    with pytest.raises(ValueError, match=sentence):
        rescale_layers(problem, problem.params(), factors)


def test_a_layer_that_shares_its_weight_has_no_factor():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    risk = EmpiricalRisk(module, "cross_entropy", randn(6, 3).float(), [0, 1, 2] * 2)
    with pytest.raises(ValueError, match=r"Got '2', whose 2.weight is 0.weight"):
        rescale_layers(risk, risk.params(), {"0": 0.5, "2": 2.0})


def test_what_has_no_layers():
    quadratic = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    with pytest.raises(TypeError, match=r"must be an EmpiricalRisk.*Got QuadraticRisk"):
        rescale_layers(quadratic, torch.zeros(2), {})
    problem = mlp()
    with pytest.raises(TypeError, match=r"factors must be a mapping.*Got list"):
        rescale_layers(problem, problem.params(), [1.0])


@pytest.mark.parametrize("factor", [1.00001, 1 + 1e-9])
def test_factors_near_1_whose_product_is_1_to_rounding(factor):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).double()
    risk = EmpiricalRisk(net, "squared_error", X, torch.zeros(10, 2).double())
    factors = {"0": factor, "2": 1 / factor}
    found = rescale_layers(risk, risk.params(), factors)
    torch.testing.assert_close(risk.outputs(found), risk.outputs(risk.params()))
