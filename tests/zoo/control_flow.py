"""What vmap and traces do not follow: branches, items, masks, writes in place."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ._harness import Kind
from ._nets import Head, N, around, between, labels

KINDS = {}


def _branch(h):
    """Each example by its sign."""
    return torch.stack([x.sin() if x.sum() > 0 else x.exp() for x in h])


def _item(h):
    return torch.stack([x * (1 + x.abs().max().item() // 1) for x in h])


def _batch_branch(h):
    """Of two functions that are the same, by a look at the whole batch."""
    return h * h if bool((h > 100).any()) else h.square()


def _nonzero(h):
    where = (h > 0).nonzero()
    out = h.sin()
    out[where[:, 0], where[:, 1]] = h[where[:, 0], where[:, 1]] ** 2
    return out


def _mask(h):
    out = h.clone()
    positive = h > 0
    out[positive] = h[positive].exp()
    return out


def _in_place_on_a_view(h):
    out = h * 1
    out[:, 1:3].mul_(h[:, :1])
    out.view(-1, 2, 2)[:, 0].add_(1)
    return out


def _loop_until(h):
    """As many steps as an example asks for."""
    rows = []
    for x in h:
        steps = 0
        while x.norm() > 1 and steps < 5:
            x, steps = x / 2 + x.sin() / 8, steps + 1
        rows.append(x)
    return torch.stack(rows)


def _halving(h):
    for i in range(3):
        h = h * (i + 1) / 2
        h = h.sin()
    return h


def _regrouped(h):
    """Two groups, one after the other."""
    first = h[:, 0] > 0
    n = int(first.sum())
    o = torch.cat([h[first], h[~first]]).sin()
    back = torch.empty_like(o)
    back[first], back[~first] = o[:n], o[n:]
    return back * h


def _filled(h):
    out = torch.zeros_like(h)
    for j in range(h.shape[1]):
        out[:, j] = h[:, j] * h[:, j - 1]
    return out


def _in_place_out(h):
    out = torch.empty_like(h)
    for i in range(len(h)):
        out[i] = h[i].sin()
    return out


_FUNCTIONS = {
    "data-dependent branch of each example": _branch,
    ".item() of each example": _item,
    "branch on the batch": _batch_branch,
    "nonzero": _nonzero,
    "boolean mask": _mask,
    "in place on a view": _in_place_on_a_view,
    "while loop of each example": _loop_until,
    "for loop": _halving,
    "regrouped by a mask": _regrouped,
    "columns written in place": _filled,
    "rows written in place": _in_place_out,
    "unique": lambda h: h * len(torch.unique(torch.ones(3))),
    "Python numbers": lambda h: h * float(torch.ones(1)) + len(h.shape),
    "expand and sum": lambda h: h[:, None].expand(-1, 3, -1).sin().sum(1),
    "split by list comprehension": lambda h: torch.stack(
        [x.sin() for x in h.unbind(0)]
    ),
    "vmap in forward": lambda h: torch.vmap(lambda x: x.sin() * x.sum())(h),
}
for name, function in _FUNCTIONS.items():
    KINDS[name] = lambda function=function: between(function)


def _per_example_gradient_in_forward():
    """A gradient in the input, as in an energy model."""

    def call(layer, h):
        with torch.enable_grad():
            x = h if h.requires_grad else h.clone().requires_grad_()
            energy = layer(x).tanh().sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]

    return around(nn.Linear(4, 2), torch.randn(N, 4), call=call)


KINDS["autograd.grad in forward"] = _per_example_gradient_in_forward
KINDS["torch.func.grad in forward"] = lambda: around(
    nn.Linear(4, 2),
    torch.randn(N, 4),
    call=lambda layer, h: torch.func.grad(lambda x: layer(x).tanh().sum())(h),
)


def _checkpointed(**options):
    return around(
        nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        torch.randn(N, 4),
        call=lambda layer, h: checkpoint(layer, h, **options),
    )


KINDS["checkpoint"] = lambda: _checkpointed(use_reentrant=False)
# The old one cannot be differentiated with a graph, nor through autograd.grad.
KINDS["checkpoint, reentrant"] = lambda: around(
    nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
    torch.randn(N, 4),
    call=lambda layer, h: checkpoint(layer, h, use_reentrant=True),
    refused="use_reentrant",
)
KINDS["checkpoint_sequential"] = lambda: around(
    nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
    torch.randn(N, 4),
    call=lambda layer, h: checkpoint_sequential(layer, 2, h, use_reentrant=False),
)


class _Draws(nn.Module):
    def forward(self, h):
        return F.dropout(h)


KINDS["F.dropout that is always on"] = lambda: around(
    _Draws(), torch.randn(N, 4), refused="same output for the same input"
)
KINDS["noise of a fixed seed"] = lambda: between(
    lambda h: h + torch.randn(4, generator=torch.Generator().manual_seed(0)).to(h)
)
KINDS["rand_like of a width"] = lambda: between(
    lambda h: h + torch.rand_like(h), refused="same output for the same input"
)


class _Counts(nn.Module):
    """Something changes at each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h):
        self.calls += 1
        return h * (1 + self.calls)


KINDS["a buffer that counts calls"] = lambda: around(
    _Counts(), torch.randn(N, 4), refused="same output for the same input"
)


def _scripted():
    layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    return Kind(
        torch.jit.script(layers),
        torch.randn(N, 4),
        labels(),
        refused="written in Python",
    )


KINDS["torch.jit.script"] = _scripted


class _Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), Head(4)

    def forward(self, X):
        h = self.layer(X)
        return self.head(h), h


class _First(_Tuple):
    def forward(self, X):
        return super().forward(X)[0]


KINDS["outputs in a tuple"] = lambda: Kind(
    _Tuple(),
    torch.randn(N, 4),
    labels(),
    options={"output_transform": lambda outputs: outputs[0]},
)


def _without_transform():
    module, reference = _Tuple(), _First()
    reference.load_state_dict(module.state_dict())
    return Kind(module, torch.randn(N, 4), labels(), reference=reference)


KINDS["outputs in a tuple without transform"] = _without_transform
