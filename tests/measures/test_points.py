"""Whatever takes θ takes it from NumPy, as ``params_`` gives it, too."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from flatmin import NoisyDiffusionClassifier, curvature, linalg, measures
from flatmin.curvature import HessianOperator
from flatmin.risk import QuadraticRisk

from .. import oracles

H = torch.diag(torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64))
SLOPES = torch.tensor(
    [[1.0, 2.0, 0.5], [-1.0, 1.0, 0.0], [0.5, -3.0, 1.0], [-0.5, 0.0, -1.5]],
    dtype=torch.float64,
)
RISK = QuadraticRisk(H, SLOPES - SLOPES.mean(0))
THETA = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

OWN = {
    "PreconditionedCovarianceOperator": {"preconditioner": torch.ones(3).double()},
    "alignment": {"k": 1},
    "covariance_eigenpairs": {"k": 1},
    "hessian_eigenpairs": {"k": 1},
    "edge_of_stability": {"lr": 0.1},
    "minibatch_eigenpairs": {"k": 1, "batches": torch.tensor([[0, 1], [2, 3]])},
    "minibatch_gaussianity": {"batch_size": 2, "n_batches": 20, "k": 1},
    "noise_spectrum": {"k": 2},
    "loss_scaled_alignment": {"k": 1},
    "tic": {"damping": 1.0},
}
# Of networks alone.
NETWORKS = {"GGNOperator", "FisherOperator", "ggn_trace", "fisher_rao_norm"}
NETWORKS |= {
    "RiskOperator",
    "covariance_exponents",
    "alignment_by_layer",
    "rescale_layers",
}


def takers():
    """Return what is public, has a parameter theta, and works on analytic risks."""
    found = {}
    for package in (curvature, measures):
        for name in package.__all__:
            thing = getattr(package, name)
            if callable(thing) and name not in NETWORKS:
                parameters = inspect.signature(thing).parameters
                if "theta" in parameters and "risk" in parameters:
                    found[name] = thing, parameters
    return found


def numbers(result):
    """Return all numbers of a result as arrays."""
    if isinstance(result, linalg.LinearOperator):
        return [result.to_dense().numpy()]
    if dataclasses.is_dataclass(result):
        fields = [getattr(result, field.name) for field in dataclasses.fields(result)]
        return [array for field in fields for array in numbers(field)]
    if isinstance(result, torch.Tensor):
        return [result.numpy()]
    return [np.asarray(result)] if isinstance(result, float | int) else []


@pytest.mark.parametrize("name", takers())
def test_an_array_is_the_same_point(name):
    function, parameters = takers()[name]
    found = []
    for theta in (THETA.clone(), THETA.numpy().copy()):
        options = dict(OWN.get(name, {}))
        if "rng" in parameters:
            options["rng"] = torch.Generator().manual_seed(0)
        found.append(numbers(function(RISK, theta, **options)))
    assert found[0]
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


# Of one θ: several are refused by name.
OF_ONE = {
    *("alignment", "covariance_exponent", "loss_scaled_alignment"),
    *("minibatch_gaussianity", "negative_mass", "noise_spectrum", "non_uniformity"),
    "tic",
}


@pytest.mark.parametrize("name", takers())
def test_of_several_points_each_is_its_own_or_all_are_refused(name):
    function, parameters = takers()[name]
    thetas = torch.stack([THETA, 2 * THETA])

    def ask(theta):
        options = dict(OWN.get(name, {}))
        if "rng" in parameters:
            options["rng"] = torch.Generator().manual_seed(0)
        if "batches" in options and theta.ndim > 1:
            options["batches"] = options["batches"].expand(2, -1, -1)
        return function(RISK, theta, **options)

    if name in OF_ONE:
        with pytest.raises(ValueError, match=r"of one θ, of shape \(D,\)"):
            ask(thetas)
        return
    found, apart = ask(thetas), [ask(theta) for theta in thetas]
    if isinstance(found, linalg.LinearOperator):
        v = torch.ones(2, 3, dtype=torch.float64)
        right = [one @ row for one, row in zip(apart, v, strict=True)]
        torch.testing.assert_close(found @ v, torch.stack(right))
        return
    both = [numbers(one) for one in apart]
    for several, *each in zip(numbers(found), *both, strict=True):
        if np.ndim(several) <= np.ndim(each[0]):
            continue  # such as the number of products
        assert np.shape(several)[0] == 2
        if "n_draws" not in parameters:  # draws of their own
            np.testing.assert_allclose(several, each, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (measures.alignment_by_layer, {}),
        (measures.covariance_exponents, {}),
        (measures.rescale_layers, {"factors": {}}),
    ],
)
def test_what_is_of_layers_takes_a_network(function, options):
    with pytest.raises(TypeError, match="risk must be an EmpiricalRisk, whose module"):
        function(RISK, THETA, **options)


def test_a_fitted_model_s_parameters():
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = (X[:, 0] > 0).astype(int)
    clf = NoisyDiffusionClassifier(
        module_params={"hidden_layer_sizes": (3,)}, max_iter=5, random_state=0
    ).fit(X, y)
    data = torch.from_numpy(X).float(), torch.from_numpy(y)
    theta = torch.from_numpy(clf.params_)
    at = oracles.dense(clf.module_, oracles.cross_entropy, *data, theta)
    wanted = float(torch.linalg.eigvalsh(at.hessian)[-1])
    found = measures.max_eigenvalue(clf.risk_, clf.params_)
    assert float(found) == pytest.approx(wanted, rel=1e-4)
    in_double = clf.risk_.to(dtype="float64")
    found = measures.max_eigenvalue(in_double, clf.params_)
    assert float(found) == pytest.approx(wanted, rel=1e-6)
    assert HessianOperator(in_double, clf.params_).dtype == torch.float64


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        (np.arange(3), TypeError, "theta must have a floating dtype. Got int64"),
        (np.ones(2), ValueError, r"theta must have shape \(3,\).* Got \(2,\)"),
        (np.ones(3) + 1j, ValueError, "theta must hold real numbers"),
        (np.ma.array(np.ones(3), mask=[1, 0, 0]), ValueError, "1 masked"),
        (np.array(["a", "b", "c"]), TypeError, "theta must have a floating dtype"),
        ([1.0, 2.0, 3.0], TypeError, "theta must be a Tensor.* use torch.as_tensor"),
    ],
)
def test_what_is_no_point(theta, error, message):
    with pytest.raises(error, match=message):
        measures.max_eigenvalue(RISK, theta)
    with pytest.raises(error, match=message):
        HessianOperator(RISK, theta)
