"""PΣP/m and P against dense matrices and against the steps of PyTorch's optimizers."""

import copy

import pytest
import torch
from torch import nn

from flatmin import NoisyDiffusionClassifier
from flatmin.curvature import (
    PreconditionedCovarianceOperator,
    adaptive_preconditioner,
    covariance_eigenpairs,
)
from flatmin.linalg import diagonal, eigsh
from flatmin.risk import QuadraticRisk

from ._problems import empirical, network, oracle, randn, rng

close = torch.testing.assert_close
M = 5


def preconditioner(size, seed=7):
    return randn(size, seed=seed).exp()


@pytest.mark.parametrize("chunk_size", [None, 5, 1])
@pytest.mark.parametrize("select", [None, "2", ["2.bias", "0.weight"]])
def test_the_matrix(chunk_size, select):
    risk, theta = empirical(chunk_size=chunk_size)
    P = preconditioner(len(theta))
    expected = torch.diag(P) @ oracle().covariance @ torch.diag(P) / M
    if select is not None:
        at = risk.layout.indices(select)
        expected = expected[at][:, at]
    A = PreconditionedCovarianceOperator(risk, theta, P, batch_size=M, select=select)
    assert A.shape == expected.shape
    close(A.matmat(torch.eye(len(expected), dtype=theta.dtype)), expected)
    close(A.to_dense(), expected)
    close(A.trace(), expected.trace())
    close(A.diagonal(), expected.diagonal())
    close(diagonal(A, rng=rng()).value, expected.diagonal())
    v = randn(len(expected))
    close(torch.tensor(A.to_scipy().rmatvec(v.numpy())), expected.mT @ v)


def test_one_side_is_another_matrix():
    # Equation 17 as printed: not symmetric, so no covariance at all.
    risk, theta = empirical()
    P = preconditioner(len(theta))
    printed = P.unsqueeze(1) * oracle().covariance
    dense = PreconditionedCovarianceOperator(risk, theta, P).to_dense()
    close(dense, dense.mT)
    assert (printed - printed.mT).norm() > 0.1 * printed.norm()


def test_it_is_the_covariance_of_preconditioned_batches():
    # With replacement: all pairs of examples, drawn alike.
    risk, theta = empirical(weights=None)
    P = preconditioner(len(theta))
    rows = torch.cat(list(risk.per_example_gradients(theta)))
    steps = P * (rows.unsqueeze(0) + rows.unsqueeze(1)).flatten(0, 1) / 2
    A = PreconditionedCovarianceOperator(risk, theta, P, batch_size=2)
    close(A.to_dense(), steps.mT.cov(correction=0))


@pytest.mark.parametrize("chains", [(), (2, 3)], ids=str)
def test_chains(chains):
    risk = QuadraticRisk(torch.eye(4).double(), randn(6, 4))
    theta, P, v = randn(*chains, 4), preconditioner(4), randn(*chains, 4, seed=2)
    S = torch.diag(P) @ risk.gradient_covariance(theta) @ torch.diag(P)
    A = PreconditionedCovarianceOperator(risk, theta, P)
    close(A @ v, (S @ v.unsqueeze(-1)).squeeze(-1))
    close(A.trace(), S.diagonal(dim1=-2, dim2=-1).sum(-1))


@pytest.mark.parametrize("select", [None, "2"])
@pytest.mark.parametrize("width", [3, 1])  # D above N, and below
def test_eigenpairs(select, width):
    risk, theta = empirical(width)
    P = preconditioner(len(theta))
    S = P.unsqueeze(1) * oracle(width).covariance * P
    if select is not None:
        at = risk.layout.indices(select)
        S = S[at][:, at]
    values, vectors = (part.flip(-1)[..., :3] for part in torch.linalg.eigh(S))
    A = PreconditionedCovarianceOperator(risk, theta, P, select=select)
    for found in (
        covariance_eigenpairs(risk, theta, 3, select=select, preconditioner=P),
        eigsh(A, 3, rng=rng(), tol=1e-10),
    ):
        close(found.eigenvalues, values)
        close((found.eigenvectors * vectors).sum(0).abs(), torch.ones(3).double())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(3), r"real vector of the D = 27.*Got shape \(3,\)"),
        (torch.ones(27, 1), r"Got shape \(27, 1\)"),
        (torch.zeros(27), r"finite and positive. Got 0.0 at coordinate 0.*27 of 27"),
        (-torch.ones(27), "Got -1.0"),
        (torch.full((27,), torch.nan), "Got nan"),
        (torch.full((27,), torch.inf), "Got inf"),
        (torch.ones(27) * 1j, "complex64"),
    ],
)
def test_what_is_no_preconditioner(bad, message):
    risk, theta = empirical()
    with pytest.raises((TypeError, ValueError), match=message):
        PreconditionedCovarianceOperator(risk, theta, bad)


def test_a_preconditioner_that_float32_cannot_hold():
    risk, theta = empirical(dtype=torch.float32)
    P = torch.full((27,), 1e-60, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"in torch.float32, must be .*Got 0.0"):
        PreconditionedCovarianceOperator(risk, theta, P)


def test_no_batch():
    risk, theta = empirical()
    with pytest.raises(ValueError, match="batch_size"):
        PreconditionedCovarianceOperator(risk, theta, torch.ones(27), batch_size=0)


# -- P --------------------------------------------------------------------------------

OPTIMIZERS = {
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}),
    "centred": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3, "centered": True}),
    "adam": (torch.optim.Adam, {"betas": (0.0, 0.9), "eps": 1e-3}),
    "adamw": (torch.optim.AdamW, {"betas": (0.0, 0.9), "weight_decay": 0.0}),
    "amsgrad": (torch.optim.Adam, {"betas": (0.0, 0.9), "amsgrad": True}),
}


def trained(kind, settings, n_steps=4, lr=0.1):
    """Return a module, its optimizer, θ before the last step and the last gradient."""
    module, X, y, _ = network()
    module = copy.deepcopy(module)
    optimizer = kind(module.parameters(), lr=lr, **settings)
    for _ in range(n_steps):
        before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X), y).backward()
        optimizer.step()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    return module, optimizer, before, gradient


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_preconditioned_gradient(name):
    # Without momentum, and with a bias correction of 1 for the mean of gradients.
    module, optimizer, before, gradient = trained(*OPTIMIZERS[name])
    after = nn.utils.parameters_to_vector(module.parameters()).detach()
    P = adaptive_preconditioner(optimizer, module)
    close(before - 0.1 * P * gradient, after, rtol=1e-10, atol=1e-12)


def test_momentum_is_not_in_it():
    _, plain, *_ = trained(torch.optim.RMSprop, {}, n_steps=1)
    module, heavy, *_ = trained(torch.optim.RMSprop, {"momentum": 0.9}, n_steps=1)
    held = plain.param_groups[0]["params"]
    P = adaptive_preconditioner(heavy, module)
    close(P, torch.cat([1 / (plain.state[p]["square_avg"].sqrt() + 1e-8).flatten()
                        for p in held]))  # fmt: skip


def test_groups_in_another_order():
    module, X, y, _ = network()
    module = copy.deepcopy(module)
    first, *others = module.parameters()
    groups = [{"params": others, "eps": 1.0}, {"params": [first], "eps": 3.0}]
    optimizer = torch.optim.RMSprop(groups, lr=0.1, alpha=0.5)
    nn.functional.cross_entropy(module(X), y).backward()
    gradients = [p.grad.flatten().clone() for p in module.parameters()]
    optimizer.step()
    expected = [
        1 / ((0.5 * g.square()).sqrt() + eps)
        for g, eps in zip(gradients, [3.0, 1.0, 1.0, 1.0], strict=True)
    ]
    close(adaptive_preconditioner(optimizer, module), torch.cat(expected))


def test_what_has_no_preconditioner():
    module = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"RMSprop, Adam or AdamW. Got SGD"):
        adaptive_preconditioner(torch.optim.SGD(module.parameters()), module)
    optimizer = torch.optim.Adam(module.parameters())
    with pytest.raises(ValueError, match=r"must have taken a step.*state of weight"):
        adaptive_preconditioner(optimizer, module)
    with pytest.raises(ValueError, match=r"does not hold weight"):
        adaptive_preconditioner(optimizer, nn.Linear(2, 1))
    module.bias.grad, module.weight.grad = torch.zeros(1), torch.zeros(1, 2)
    optimizer = torch.optim.RMSprop(module.parameters(), eps=0.0)
    optimizer.step()
    with pytest.raises(ValueError, match=r"finite and positive. Got inf at coord"):
        adaptive_preconditioner(optimizer, module)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_of_a_fitted_estimator(optimizer):
    module, X, y, _ = network()
    settings = {"eps": 1e-4}
    clf = NoisyDiffusionClassifier(
        copy.deepcopy(module),
        method="gd",
        optimizer=optimizer,
        optimizer_params=settings,
        lr=0.1,
        max_iter=3,
        record_every=2,
        dtype="float64",
    ).fit(X.numpy(), y.numpy())
    kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[optimizer]
    own, reference, *_ = trained(kind, settings, n_steps=3)
    P = adaptive_preconditioner(clf.net_.optimizer_, clf.module_)
    close(P, adaptive_preconditioner(reference, own))
    held = [v for s in clf.net_.optimizer_.state.values() for v in s.values()]
    sizes = [v.untyped_storage().nbytes() for v in held if v.ndim]
    assert sum(sizes) == 27 * 8 * (1 if optimizer == "rmsprop" else 2)
