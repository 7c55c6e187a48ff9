"""H, G and the empirical Fisher matrix against curvlinops.

Its matrices are those of c Σ ℓ with c = 1/N for a mean, and for a mean of squared
errors c = 1/(N C) with ℓ = ‖f - y‖² over C outputs. H and G are flatmin's. The Fisher
matrix is quadratic in ℓ, so that with squared errors it is C times flatmin's
(1/N) Σ gᵢgᵢᵀ. Each position of a sequence is an example of its own to it.
"""

import pytest
import torch
from torch.nn import functional as F

from flatmin.curvature import GradientCovarianceOperator

from ._networks import (
    NETWORKS,
    difference,
    flat,
    hand,
    import_peer,
    judge,
    matrix,
    oracle,
    plain_kernels,
    prepared_risk,
    refuses,
)

curvlinops = import_peer("curvlinops")

pytestmark = pytest.mark.peers

# PyTorch's vectorised second derivative of layer norm, which it relies on, is wrong;
# and forward mode moves the row of an embedding that padding_idx keeps still.
WRONG = {
    "HessianLinearOperator": {"layer norm", "transformer", "embedding"},
    "GGNLinearOperator": {"embedding"},
    "EFLinearOperator": {"embedding"},
}
REFUSES = {
    "HessianLinearOperator": {
        "group norm": (NotImplementedError, "native_group_norm_backward")
    },
    "GGNLinearOperator": {},
    "EFLinearOperator": {},
}


def dense(kind, name):
    """Return a matrix of curvlinops' from batches of five and two examples."""
    handed = hand(name)
    with plain_kernels():
        operator = getattr(curvlinops, kind)(
            handed.module, handed.criterion, handed.params, handed.batches(5)
        )
        return operator @ torch.eye(operator.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_hessian(name):
    kind = "HessianLinearOperator"
    _, point = prepared_risk(name)
    ours, right = matrix(point.hvp, name), oracle(name).hessian
    theirs = right
    with refuses(REFUSES[kind], name):
        theirs = dense(kind, name)
    judge(ours, theirs, right, wrong=name in WRONG[kind])


@pytest.mark.parametrize("name", NETWORKS)
def test_gauss_newton(name):
    kind = "GGNLinearOperator"
    _, point = prepared_risk(name)
    ours, right = matrix(point.ggn, name), oracle(name).gauss_newton
    theirs = right
    with refuses(REFUSES[kind], name):
        theirs = dense(kind, name)
    judge(ours, theirs, right, wrong=name in WRONG[kind])


@pytest.mark.parametrize("name", NETWORKS)
def test_fisher_and_covariance(name):
    kind = "EFLinearOperator"
    risk, point = prepared_risk(name)
    known = oracle(name)
    factor = 1
    if isinstance(hand(name).criterion, torch.nn.MSELoss):
        factor = known.outputs[0].numel()
    fisher = dense(kind, name) / factor
    mean = known.gradient
    for centered, theirs, right in [
        (False, fisher, known.covariance + torch.outer(mean, mean)),
        (True, fisher - torch.outer(mean, mean), known.covariance),
    ]:
        operator = GradientCovarianceOperator(risk, point.theta, centered=centered)
        ours = matrix(operator.matvec, name)
        another = name == "transformer"  # see the next test
        judge(ours, theirs, right, wrong=another or name in WRONG[kind])


def test_positions_are_examples_to_its_fisher_matrix():
    name = "transformer"
    handed = hand(name)
    losses = F.cross_entropy(handed.module(handed.X), handed.y, reduction="none")
    slopes = [
        flat(torch.autograd.grad(loss, handed.params, retain_graph=True))
        for loss in losses.flatten()
    ]
    expected = sum(torch.outer(g, g) for g in slopes) / losses.numel()
    assert difference(dense("EFLinearOperator", name), expected) < 1e-9
