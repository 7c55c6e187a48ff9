"""The networks that are compared, and how a peer is handed one."""

import contextlib
import copy
import warnings
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from flatmin.risk.products import graphs

from .. import oracles
from ..risk._cases import oracle, problem

__all__ = [
    "NETWORKS",
    "difference",
    "flat",
    "hand",
    "import_peer",
    "judge",
    "matrix",
    "oracle",
    "plain_kernels",
    "prepared_risk",
    "refuses",
    "split",
]

NETWORKS = [
    "mlp",
    "mlp, two outputs",
    "convolutional",
    "tied",
    "called twice",
    "in-place ReLU",
    "batch norm",
    "group norm",
    "layer norm",
    "transformer",
    "LSTM",
    "GRU",
    "embedding",
]

CRITERIA = {"cross_entropy": nn.CrossEntropyLoss, "squared_error": nn.MSELoss}

# Neither side of a comparison is nearer to the truth than rounding in float64.
CLOSE = 1e-9


def import_peer(name):
    """Skip the module where a peer is not installed; what it warns of is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@dataclass(frozen=True)
class Handed:
    """A network at θ in float64, in eval mode, with its data: a peer's to change."""

    module: nn.Module
    criterion: nn.Module  # a mean over examples, outputs and positions, as flatmin's
    X: torch.Tensor
    y: torch.Tensor

    @property
    def params(self):
        return list(self.module.parameters())

    def batches(self, size):
        return list(zip(self.X.split(size), self.y.split(size), strict=True))


def hand(name):
    p = problem(name)
    module = copy.deepcopy(p.module).eval()
    vector_to_parameters(p.theta.clone(), module.parameters())
    return Handed(module, CRITERIA[p.case.loss](), p.X.clone(), p.y)


@cache
def prepared_risk(name):
    """Return flatmin's risk, traced and in chunks of 3, 3 and 1, and its point θ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_WORTH_A_GRAPH", 0)
        risk = problem(name).risk(chunk_size=3)
        point = risk.linearize(problem(name).theta)
        for product in (point.hvp, point.ggn, point.directional_derivatives):
            product(problem(name).theta)
    return risk, point


def matrix(product, name):
    """Return the matrix behind a product with flat vectors."""
    columns = torch.eye(len(problem(name).theta), dtype=torch.float64)
    return torch.stack([product(column) for column in columns], dim=1).detach()


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts]).detach()


def split(vector, params):
    parts = vector.split([p.numel() for p in params])
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]


def judge(ours, theirs, right, *, wrong=False):
    """Hold flatmin, and the peer unless it is known to be wrong, to the oracle."""
    assert difference(ours, right) <= CLOSE
    if wrong:
        assert difference(theirs, right) > 1e-3
    else:
        assert difference(theirs, right) <= CLOSE


def difference(actual, expected):
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


@contextlib.contextmanager
def refuses(reasons, name):
    """Expect the error that a peer is known to raise on a network."""
    if name not in reasons:
        yield
        return
    kind, match = reasons[name]
    with pytest.raises(kind, match=match):
        yield


@contextlib.contextmanager
def plain_kernels():
    """Switch off the fused kernels of attention, which lack derivatives."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with oracles.right_second_derivatives():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
