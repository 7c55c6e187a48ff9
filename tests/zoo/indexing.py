"""Gathering, scattering, sorting, scanning and reducing."""

import torch
from torch.nn import functional as F

from ._nets import between

KINDS = {}


def _rank(h):
    return h.detach().argsort(1)


def _scattered(h):
    return torch.zeros_like(h).scatter_add(1, _rank(h) // 2, h)


def _masked_select(h):
    """As many of each example."""
    mask = torch.tensor([True, False, True, True]).expand_as(h)
    return h.masked_select(mask).view(len(h), 3)


_FUNCTIONS = {
    "gather": lambda h: h.gather(1, _rank(h)[:, :3]),
    "index_select": lambda h: h.index_select(1, torch.tensor([3, 0, 0])),
    "a list as index": lambda h: h[:, [3, 1, 1]],
    "an index of every row": lambda h: h[torch.arange(len(h))[:, None], _rank(h)],
    "take_along_dim": lambda h: torch.take_along_dim(h, _rank(h), 1),
    "take": lambda h: (
        h.view(len(h), -1).flatten().take(torch.arange(h.numel()).view(h.shape).flip(1))
    ),
    "scatter_add": _scattered,
    "scatter": lambda h: torch.zeros_like(h).scatter(1, _rank(h), h),
    "scatter_reduce, amax": lambda h: torch.zeros_like(h).scatter_reduce(
        1, _rank(h) // 2, h, "amax", include_self=False
    ),
    "scatter_reduce, mean": lambda h: torch.zeros_like(h).scatter_reduce(
        1, _rank(h) // 2, h, "mean"
    ),
    "scatter_reduce, prod": lambda h: torch.ones_like(h).scatter_reduce(
        1, _rank(h) // 2, h, "prod"
    ),
    "index_add": lambda h: h.index_add(1, torch.tensor([0, 0, 1]), h[:, 1:].sin()),
    "index_copy": lambda h: h.index_copy(1, torch.tensor([0, 3]), h[:, 1:3].sin()),
    "index_put": lambda h: h.index_put(
        (torch.arange(len(h))[:, None], torch.tensor([0, 2])), h[:, :2].sin()
    ),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([1]), 0.5),
    "masked_select": _masked_select,
    "masked_fill": lambda h: h.masked_fill(h > 0.3, -1.0),
    "masked_scatter": lambda h: h.masked_scatter(
        torch.tensor([True, False, False, True]).expand_as(h), h[:, :2].sin()
    ),
    "where": lambda h: torch.where(h > 0, h.exp(), h.sin()),
    "sort": lambda h: h.sort(1).values,
    "sort, descending": lambda h: h.sort(1, descending=True)[0],
    "argsort and gather": lambda h: h.gather(1, h.argsort(1)),
    "topk": lambda h: h.topk(2, 1).values,
    "kthvalue": lambda h: h.kthvalue(2, 1, keepdim=True).values,
    "median": lambda h: h * h.median(1, keepdim=True).values,
    "nanmedian": lambda h: h * h.nanmedian(1, keepdim=True).values,
    "mode": lambda h: h * h.mode(1, keepdim=True).values,
    "quantile": lambda h: h * h.quantile(0.3, dim=1, keepdim=True),
    "quantile, nearest": lambda h: (
        h * h.quantile(0.3, dim=1, keepdim=True, interpolation="nearest")
    ),
    "nanquantile": lambda h: h * h.nanquantile(0.6, dim=1, keepdim=True),
    "cumsum": lambda h: h.cumsum(1),
    "cumprod": lambda h: h.cumprod(1),
    "cummax": lambda h: h.cummax(1).values,
    "cummin": lambda h: h.cummin(1).values,
    "prod": lambda h: h * h.prod(1, keepdim=True),
    "prod without dim": lambda h: h * torch.stack([x.prod() for x in h])[:, None],
    "prod with a zero": lambda h: (h * torch.tensor([0.0, 1, 1, 1])).prod(
        1, keepdim=True
    ),
    "cumprod with a zero": lambda h: (h * torch.tensor([1.0, 0, 1, 1])).cumprod(1),
    "logsumexp": lambda h: h * h.logsumexp(1, keepdim=True),
    "amax": lambda h: h * h.amax(1, keepdim=True),
    "max along dim": lambda h: h * h.max(1, keepdim=True).values,
    "aminmax": lambda h: torch.cat(torch.aminmax(h, dim=1, keepdim=True), 1),
    "var": lambda h: h * h.var(1, keepdim=True),
    "std_mean": lambda h: torch.cat(torch.std_mean(h, 1, keepdim=True), 1),
    "norm": lambda h: h / h.norm(dim=1, keepdim=True),
    "norm, p = 3": lambda h: h / h.norm(3, dim=1, keepdim=True),
    "F.normalize": lambda h: F.normalize(h, dim=1),
    "roll, flip and diff": lambda h: h.roll(1, 1).flip(1).diff(dim=1),
    "unfold": lambda h: h.unfold(1, 2, 1).prod(2),
    "as_strided": lambda h: h.contiguous().as_strided((len(h), 3, 2), (4, 1, 1)).sin(),
    "diag_embed": lambda h: torch.diag_embed(h).sin(),
    "tril and triu": lambda h: (h[:, :, None] * h[:, None]).tril(-1),
    "repeat_interleave": lambda h: h.repeat_interleave(2, 1),
    "tensor_split and cat": lambda h: torch.cat(h.tensor_split(2, 1)[::-1], 1),
    "meshgrid of each": lambda h: (h[:, :, None] - h[:, None]).sigmoid(),
    "one_hot of a rank": lambda h: h[:, None] * F.one_hot(_rank(h), 4),
    "bucketize": lambda h: h * torch.bucketize(h.detach(), torch.tensor([-1.0, 0, 1])),
    "searchsorted": lambda h: (
        h * torch.searchsorted(h.detach().sort(1).values, h.detach())
    ),
    "renorm": lambda h: h.renorm(2, 0, 0.5),
    "trapezoid": lambda h: torch.trapezoid(h.sin(), dim=1)[:, None],
    "cov of each": lambda h: torch.stack([torch.cov(x.view(2, 2)) for x in h]),
    "histogram by a soft count": lambda h: (
        (-(h[:, :, None] - torch.arange(3)).square()).exp().sum(1)
    ),
}
for name, function in _FUNCTIONS.items():
    KINDS[name] = lambda function=function: between(function)
# The second derivative of PyTorch's own is NaN.
KINDS["logcumsumexp"] = lambda: between(
    lambda h: h.logcumsumexp(1), second="difference"
)
