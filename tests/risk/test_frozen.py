"""Products with the trainable parameters alone run nothing of a frozen trunk."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

WIDE = 13


class Products(TorchDispatchMode):
    """Counts products of matrices that have the trunk's width."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        shapes = [a.shape for a in args if isinstance(a, torch.Tensor)]
        if name in ("mm", "addmm", "bmm") and any(WIDE in shape for shape in shapes):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def frozen():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = nn.Sequential(
            nn.Linear(6, WIDE), nn.Tanh(), nn.Linear(WIDE, 4), nn.Tanh()
        )
        head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        X, y = torch.randn(20, 6), torch.arange(20) % 3
        yield nn.Sequential(trunk.requires_grad_(False), head).double(), X.double(), y


@pytest.mark.parametrize("worth", [0, 1 << 60], ids=["graph", "reference"])
@pytest.mark.parametrize("quantity", ["hvp", "ggn", "jvp"])
def test_a_product_runs_no_frozen_layer(frozen, monkeypatch, worth, quantity):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", worth)
    module, X, y = frozen
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    assert len(theta) == sum(p.numel() for p in module[1].parameters())
    point = risk.linearize(theta)
    product = getattr(point, quantity)
    product(theta)
    with Products() as counted:
        found = product(theta)
    assert not counted.calls
    of_head = EmpiricalRisk(module[1], "cross_entropy", module[0](X), y)
    alone = getattr(of_head.linearize(theta), quantity)
    torch.testing.assert_close(found, alone(theta))


def test_the_paths_tell_that_checkpoints_save_nothing(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, X):
            hidden = checkpoint(lambda Z: self.a(Z).tanh(), X, use_reentrant=False)
            return self.b(hidden)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Checkpointed().double()
        X, y = torch.randn(20, 6).double(), torch.arange(20) % 3
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    found = risk.linearize(theta).hvp(theta)
    params = list(module.parameters())
    loss = F.cross_entropy(module.b(module.a(X).tanh()), y)
    slopes = torch.autograd.grad(loss, params, create_graph=True)
    along = torch.cat([part.flatten() for part in slopes]) @ theta
    right = torch.cat([part.flatten() for part in torch.autograd.grad(along, params)])
    torch.testing.assert_close(found, right)
    assert "keeps what checkpoints let go" in risk.paths["hvp"]
