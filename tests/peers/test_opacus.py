"""Per-example gradients and their norms against Opacus."""

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk

from ._networks import (
    NETWORKS,
    difference,
    hand,
    import_peer,
    judge,
    oracle,
    plain_kernels,
    prepared_risk,
    refuses,
)

opacus = import_peer("opacus")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook"),
]

# A weight used outside of its layer is not seen, and the row of an embedding that
# padding_idx keeps still has a gradient.
WRONG = {"tied", "embedding"}
_VMAP = (RuntimeError, "doesn't match the broadcast shape")
REFUSES = {
    "in-place ReLU": (RuntimeError, "is a view and is being modified inplace"),
    "batch norm": (NotImplementedError, "trainable layer with buffers"),
    "transformer": (TypeError, "missing 2 required positional arguments"),
    "LSTM": _VMAP,
    "GRU": _VMAP,
}


def rows(handed):
    # Its hooks do nothing in eval mode.
    module = opacus.GradSampleModule(handed.module.train(), loss_reduction="mean")
    handed.criterion(module(handed.X), handed.y).backward()
    return torch.cat([p.grad_sample.flatten(1) for p in handed.params], dim=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_per_example_gradients(name):
    risk, point = prepared_risk(name)
    right = oracle(name).gradients
    theirs = right
    with plain_kernels(), refuses(REFUSES, name):
        theirs = rows(hand(name))
    ours = torch.cat(list(risk.per_example_gradients(point.theta)))
    judge(ours, theirs, right, wrong=name in WRONG)
    norms = theirs.square().sum(1)
    wrong = name in WRONG
    judge(risk.squared_norms(point.theta), norms, right.square().sum(1), wrong=wrong)


def test_channels_last_images():
    """Its convolutions take the strides of images to be those of the default layout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        X = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    module = module.double()
    y = torch.tensor([0, 1, 1, 0, 1])
    criterion = nn.CrossEntropyLoss()
    losses = [criterion(module(x[None]), y[i : i + 1]) for i, x in enumerate(X)]
    params = list(module.parameters())
    slopes = [torch.autograd.grad(loss, params) for loss in losses]
    right = torch.stack([sum(g.square().sum() for g in parts) for parts in slopes])

    X = X.to(memory_format=torch.channels_last)
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    assert difference(risk.squared_norms(risk.params()), right) < 1e-9
    wrapped = opacus.GradSampleModule(module, loss_reduction="mean")
    criterion(wrapped(X), y).backward()
    theirs = sum(p.grad_sample.flatten(1).square().sum(1) for p in params)
    assert difference(theirs, right) > 1e-3
