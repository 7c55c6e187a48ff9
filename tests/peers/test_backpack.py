"""Sums of squared gradients, and the diagonal of G, against BackPACK.

With a mean as loss it has the gradients gᵢ/N, so that its squares times N² are ours.
"""

import pytest
import torch

from ._networks import (
    NETWORKS,
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

backpack = import_peer("backpack")
extensions = import_peer("backpack.extensions")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    # Said of every module that it does not know, also where the answer is right.
    pytest.mark.filterwarnings("ignore:Extension saving to .* does not have an"),
]

# A weight used outside of its layer is not seen.
WRONG = {"tied"}
# Nor the groups and dilation of a convolution, in this one extension.
WRONG_NORMS = {*WRONG, "convolutional"}

_VIEW = (RuntimeError, "is a view and is being modified inplace")
_MISSING = (AttributeError, "'Parameter' object has no attribute")
REFUSES = {
    "called twice": (AttributeError, "has no attribute 'output'"),
    "in-place ReLU": _VIEW,
    "group norm": _MISSING,
    "layer norm": _MISSING,
    "transformer": _MISSING,
    "GRU": _MISSING,
    "embedding": (NotImplementedError, "padding_idx=None"),
}


def quantity(name, extension, savefield):
    handed = hand(name)
    module = backpack.extend(handed.module)
    criterion = backpack.extend(handed.criterion)
    with backpack.backpack(getattr(extensions, extension)()):
        criterion(module(handed.X), handed.y).backward()
    return [getattr(p, savefield) for p in handed.params]


@pytest.mark.parametrize("name", NETWORKS)
def test_variances(name):
    risk, point = prepared_risk(name)
    right = oracle(name).covariance.diagonal()
    theirs = right
    with plain_kernels(), refuses(REFUSES, name):
        theirs = flat(quantity(name, "Variance", "variance")) * risk.n_examples**2
    judge(risk.gradient_variances(point.theta), theirs, right, wrong=name in WRONG)


@pytest.mark.parametrize("name", NETWORKS)
def test_squared_norms(name):
    risk, point = prepared_risk(name)
    right = oracle(name).gradients.square().sum(1)
    theirs = right
    with plain_kernels(), refuses(REFUSES, name):
        parts = quantity(name, "BatchL2Grad", "batch_l2")
        theirs = torch.stack(parts).sum(0) * risk.n_examples**2
    judge(risk.squared_norms(point.theta), theirs, right, wrong=name in WRONG_NORMS)


# It needs a chain of modules that it knows, without a function between them.
@pytest.mark.parametrize("name", ["mlp", "mlp, two outputs", "batch norm"])
def test_diagonal_of_gauss_newton(name):
    _, point = prepared_risk(name)
    ours = matrix(point.ggn, name).diagonal()
    theirs = flat(quantity(name, "DiagGGNExact", "diag_ggn_exact"))
    judge(ours, theirs, oracle(name).gauss_newton.diagonal())


def test_convolutions_without_groups_and_dilation():
    """There its norms are right."""
    name = "convolutional, one channel"
    risk, point = prepared_risk(name)
    parts = quantity(name, "BatchL2Grad", "batch_l2")
    theirs = torch.stack(parts).sum(0) * risk.n_examples**2
    right = oracle(name).gradients.square().sum(1)
    judge(risk.squared_norms(point.theta), theirs, right)
