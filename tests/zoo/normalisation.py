"""Normalisation within an example, and by stored statistics."""

from functools import partial

import torch
from torch import nn

from ._nets import N, around

KINDS = {}
_SIDES = {1: (4,), 2: (3, 3), 3: (2, 2, 2)}


def _data(d):
    return torch.randn(N, *([2] if d == 1 else [1]), *_SIDES[d])


def _batch_norm(d, **options):
    layer = getattr(nn, f"BatchNorm{d}d")(2, **options)
    return around(_with_statistics(layer), _data(d))


def _with_statistics(layer):
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


def _batch_norm_of_vectors():
    return around(_with_statistics(nn.BatchNorm1d(4)), torch.randn(N, 4))


def _sync_batch_norm():
    return around(_with_statistics(nn.SyncBatchNorm(2)), _data(2))


def _instance_norm(d, *, stored=False, trains=False, **options):
    layer = getattr(nn, f"InstanceNorm{d}d")(2, track_running_stats=stored, **options)
    if stored:
        _with_statistics(layer)
    return around(layer, _data(d), trains=trains)


def _without_statistics(d):
    layer = getattr(nn, f"BatchNorm{d}d")(2, track_running_stats=False)
    return around(layer, _data(d), refused="without running statistics")


def _training(d):
    layer = getattr(nn, f"BatchNorm{d}d")(2)
    return around(layer, _data(d), trains=True, refused="BatchNorm in train mode")


for d in (1, 2, 3):
    KINDS[f"BatchNorm{d}d"] = partial(_batch_norm, d)
    KINDS[f"BatchNorm{d}d without statistics"] = partial(_without_statistics, d)
    KINDS[f"BatchNorm{d}d in train mode"] = partial(_training, d)
    KINDS[f"InstanceNorm{d}d"] = partial(_instance_norm, d)
    KINDS[f"InstanceNorm{d}d, affine"] = partial(_instance_norm, d, affine=True)
    KINDS[f"InstanceNorm{d}d, stored statistics"] = partial(
        _instance_norm, d, stored=True, affine=True
    )
KINDS["BatchNorm1d of vectors"] = _batch_norm_of_vectors
KINDS["BatchNorm2d without weight"] = partial(_batch_norm, 2, affine=False)
KINDS["SyncBatchNorm"] = _sync_batch_norm


def _frozen():
    layer = _with_statistics(nn.BatchNorm2d(2)).eval()
    kind = around(layer, _data(2), options={"batch_norm": "frozen"})
    return kind


KINDS["BatchNorm2d, frozen"] = _frozen

_OF_EXAMPLES = ("rows", "diag Σ", "‖gᵢ‖²", "gᵢᵀv", "Tr Gᵢ", "ΣHᵢ²v/N")


def _of_batch(layer, d):
    refused = dict.fromkeys(_OF_EXAMPLES, "needs the loss of each example by itself")
    return around(
        layer(), _data(d), refused=refused, options={"batch_norm": "batch"}, trains=True
    )


for d in (1, 2, 3):
    layer = partial(getattr(nn, f"BatchNorm{d}d"), 2)
    KINDS[f"BatchNorm{d}d of the batch"] = partial(_of_batch, layer, d)
KINDS["SyncBatchNorm of the batch"] = partial(
    _of_batch, partial(nn.SyncBatchNorm, 2), 2
)

_WITHIN = {
    "GroupNorm": lambda: nn.GroupNorm(2, 2),
    "GroupNorm, one group": lambda: nn.GroupNorm(1, 2),
    "LayerNorm": lambda: nn.LayerNorm([2, 3, 3]),
    "LayerNorm, last axis": lambda: nn.LayerNorm(3),
    "LayerNorm without weight": lambda: nn.LayerNorm(3, elementwise_affine=False),
    "RMSNorm": lambda: nn.RMSNorm(3),
    "RMSNorm, three axes": lambda: nn.RMSNorm([2, 3, 3]),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2, alpha=0.5),
}
for name, make in _WITHIN.items():
    KINDS[name] = lambda make=make: around(make(), _data(2))
# PyTorch's own gradient is wrong: ``gradcheck`` fails (torch 2.13).
KINDS["CrossMapLRN2d"] = lambda: around(
    nn.CrossMapLRN2d(2, alpha=0.5), _data(2), refused="CrossMapLRN2d"
)
KINDS["LayerNorm of vectors"] = lambda: around(nn.LayerNorm(4), torch.randn(N, 4))
KINDS["LayerNorm of sequences"] = lambda: around(nn.LayerNorm(3), torch.randn(N, 4, 3))
KINDS["RMSNorm of vectors"] = lambda: around(nn.RMSNorm(4), torch.randn(N, 4))
