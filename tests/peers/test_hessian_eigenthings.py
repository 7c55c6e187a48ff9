"""H, G, the empirical Fisher matrix and eigenpairs against hessian-eigenthings."""

import pytest
import torch

from flatmin.curvature import GradientCovarianceOperator

from ._networks import (
    NETWORKS,
    difference,
    hand,
    import_peer,
    judge,
    matrix,
    oracle,
    plain_kernels,
    prepared_risk,
    refuses,
)

peer = import_peer("hessian_eigenthings")

pytestmark = pytest.mark.peers

# Its G moves the row of an embedding that padding_idx keeps still: forward mode.
WRONG = {"hessian": set(), "ggn": {"embedding"}, "fisher": set()}
# Its Fisher matrix calls the loss on outputs without a batch axis, and vmaps.
REFUSES = {
    "hessian": {},
    "ggn": {},
    "fisher": {
        "transformer": (ValueError, "Expected input batch_size"),
        "LSTM": (RuntimeError, "doesn't match the broadcast shape"),
        "GRU": (RuntimeError, "doesn't match the broadcast shape"),
    },
}


def product(kind, name, batch_size):
    handed = hand(name)
    batches, criterion = handed.batches(batch_size), handed.criterion
    if kind == "hessian":
        loss = peer.supervised_loss(criterion)
        return peer.HessianOperator(handed.module, batches, loss).matvec
    if kind == "ggn":
        loss = peer.supervised_loss_of_output(criterion)
        forward = peer.supervised_forward
        return peer.GGNOperator(handed.module, batches, forward, loss).matvec
    loss = peer.supervised_per_sample_loss(criterion)
    return peer.EmpiricalFisherOperator(handed.module, batches, loss).matvec


def ours_and_right(kind, name):
    risk, point = prepared_risk(name)
    known = oracle(name)
    if kind == "hessian":
        return matrix(point.hvp, name), known.hessian
    if kind == "ggn":
        return matrix(point.ggn, name), known.gauss_newton
    operator = GradientCovarianceOperator(risk, point.theta, centered=False)
    fisher = known.gradients.mT @ known.gradients / risk.n_examples
    return matrix(operator.matvec, name), fisher


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_batch(name, kind):
    ours, right = ours_and_right(kind, name)
    theirs = right
    with plain_kernels(), refuses(REFUSES[kind], name):
        theirs = matrix(product(kind, name, batch_size=7), name)
    judge(ours, theirs, right, wrong=name in WRONG[kind])


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_it_averages_batches_whatever_their_size(kind):
    """Five examples and two count alike; flatmin's chunks here are 3, 3 and 1."""
    ours, right = ours_and_right(kind, "mlp")
    theirs = matrix(product(kind, "mlp", batch_size=5), "mlp")
    judge(ours, theirs, right, wrong=True)


def test_eight_and_two_of_ten_examples():
    X = torch.arange(1.0, 11.0, dtype=torch.float64)[:, None]
    y = torch.zeros_like(X)
    module = torch.nn.Linear(1, 1, bias=False).double()
    loss = peer.supervised_loss(torch.nn.MSELoss())
    batches = [(X[:8], y[:8]), (X[8:], y[8:])]
    theirs = peer.HessianOperator(module, batches, loss).matvec(torch.ones(1).double())
    right = 2 * X.square().mean()
    unweighted = X[:8].square().mean() + X[8:].square().mean()
    torch.testing.assert_close(theirs[0], unweighted)
    assert difference(theirs[0], right) > 0.5
