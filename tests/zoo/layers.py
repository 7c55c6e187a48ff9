"""Embeddings, padding, folding, dropout and whatever else ``torch.nn`` has."""

import torch
from torch import nn
from torch.nn import functional as F

from ._harness import Kind
from ._nets import N, around, labels

KINDS = {}


def _words(n_words=5, length=3):
    return torch.randint(0, n_words, (N, length))


def _embedding(second="autograd", **options):
    return around(nn.Embedding(5, 3, **options), _words(), second=second)


KINDS["Embedding"] = _embedding
# The padding's row is a constant, whatever it does to the value.
KINDS["Embedding with padding_idx"] = lambda: _embedding("unchecked", padding_idx=1)
# How often a word comes in the other examples is in the gradient.
KINDS["Embedding, scaled by frequency"] = lambda: around(
    nn.Embedding(5, 3, scale_grad_by_freq=True),
    _words(),
    refused="must be the sum of theirs",
)
KINDS["Embedding, sparse"] = lambda: _embedding(sparse=True)
KINDS["Embedding with max_norm"] = lambda: around(
    nn.Embedding(5, 3, max_norm=1.0), _words(), refused="Embedding with max_norm"
)


class _Bag(nn.Module):
    """``nn.EmbeddingBag`` by functions that PyTorch differentiates twice."""

    def __init__(self, mode, padding_idx=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, 3))
        self.mode, self.padding_idx = mode, padding_idx

    def forward(self, X):
        rows = F.embedding(X, self.weight)
        if self.mode == "max":
            return rows.amax(1)
        counts = torch.ones_like(X, dtype=rows.dtype)
        if self.padding_idx is not None:
            counts = (self.padding_idx != X).to(rows.dtype)
        sums = (rows * counts.unsqueeze(-1)).sum(1)
        sizes = counts.sum(1, keepdim=True).clamp(min=1)
        return sums / sizes if self.mode == "mean" else sums


def _bag(mode, padding_idx=None, **options):
    X = torch.stack([torch.randperm(5)[:3] for _ in range(N)])
    layer = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding_idx, **options)
    reference = around(_Bag(mode, padding_idx), X).module
    return around(layer, X, reference=reference)


for mode in ("mean", "sum", "max"):
    KINDS[f"EmbeddingBag, {mode}"] = lambda mode=mode: _bag(mode)
KINDS["EmbeddingBag with padding_idx"] = lambda: _bag("mean", padding_idx=1)
KINDS["EmbeddingBag, sparse"] = lambda: _bag("sum", sparse=True)


def _weighted_bag():
    def call(layer, X):
        return layer(X, per_sample_weights=(1 + X).to(layer.weight.dtype))

    return around(
        nn.EmbeddingBag(5, 3, mode="sum"), _words(), call=call, second="difference"
    )


KINDS["EmbeddingBag with weights"] = _weighted_bag


def _bag_by_offsets():
    def call(layer, X):
        return layer(X.flatten(), torch.arange(len(X)) * X.shape[1])

    return around(nn.EmbeddingBag(5, 3), _words(), call=call, second="difference")


KINDS["EmbeddingBag by offsets"] = _bag_by_offsets


def _bilinear():
    return around(
        nn.Bilinear(2, 2, 3), torch.randn(N, 4), call=lambda b, h: b(h[:, :2], h[:, 2:])
    )


KINDS["Bilinear"] = _bilinear

_OF_VECTORS = {
    "Identity": nn.Identity,
    "Linear": lambda: nn.Linear(4, 3),
    "Linear without bias": lambda: nn.Linear(4, 3, bias=False),
    "Flatten": nn.Flatten,
    "Unflatten": lambda: nn.Unflatten(1, (2, 2)),
    "Dropout": nn.Dropout,
    "AlphaDropout": nn.AlphaDropout,
    "FeatureAlphaDropout": nn.FeatureAlphaDropout,
}
for name, make in _OF_VECTORS.items():
    KINDS[name] = lambda make=make: around(make(), torch.randn(N, 4))

_OF_IMAGES = {
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "PixelShuffle": lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2)),
    "PixelUnshuffle": lambda: nn.PixelUnshuffle(3),
    "Upsample, nearest": lambda: nn.Upsample(scale_factor=2),
    "Upsample, bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "Upsample, bilinear, corners": lambda: nn.Upsample(
        size=4, mode="bilinear", align_corners=True
    ),
    "Upsample, bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "UpsamplingNearest2d": lambda: nn.UpsamplingNearest2d(scale_factor=2),
    "UpsamplingBilinear2d": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "Unfold": lambda: nn.Unfold(2),
    "Fold": lambda: nn.Sequential(nn.Unfold(2), nn.Tanh(), nn.Fold(3, 2)),
    "Dropout2d": nn.Dropout2d,
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(1),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d((1, 0, 2, 1)),
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "ConstantPad2d": lambda: nn.ConstantPad2d(1, 0.5),
    "CircularPad2d": lambda: nn.CircularPad2d(1),
    "cropped by a negative pad": lambda: nn.ZeroPad2d(-1),
}
for name, make in _OF_IMAGES.items():
    KINDS[name] = lambda make=make: around(make(), torch.randn(N, 1, 3, 3))

_OF_SEQUENCES = {
    "Dropout1d": nn.Dropout1d,
    "ReflectionPad1d": lambda: nn.ReflectionPad1d(1),
    "ReplicationPad1d": lambda: nn.ReplicationPad1d(1),
    "ZeroPad1d": lambda: nn.ZeroPad1d(1),
    "ConstantPad1d": lambda: nn.ConstantPad1d(1, 0.5),
    "CircularPad1d": lambda: nn.CircularPad1d(1),
    "Upsample, linear": lambda: nn.Upsample(scale_factor=2, mode="linear"),
}
for name, make in _OF_SEQUENCES.items():
    KINDS[name] = lambda make=make: around(make(), torch.randn(N, 2, 3))

_OF_VOLUMES = {
    "Dropout3d": nn.Dropout3d,
    "ReflectionPad3d": lambda: nn.ReflectionPad3d(1),
    "ReplicationPad3d": lambda: nn.ReplicationPad3d(1),
    "ZeroPad3d": lambda: nn.ZeroPad3d(1),
    "ConstantPad3d": lambda: nn.ConstantPad3d(1, 0.5),
    "CircularPad3d": lambda: nn.CircularPad3d(1),
    "Upsample, trilinear": lambda: nn.Upsample(scale_factor=2, mode="trilinear"),
}
for name, make in _OF_VOLUMES.items():
    KINDS[name] = lambda make=make: around(make(), torch.randn(N, 1, 2, 2, 2))


def _pair(layer):
    return around(
        layer, torch.randn(N, 2, 3), call=lambda pair, h: pair(h[:, :1], h[:, 1:])
    )


KINDS["CosineSimilarity"] = lambda: _pair(nn.CosineSimilarity(dim=2))
KINDS["PairwiseDistance"] = lambda: _pair(nn.PairwiseDistance())
KINDS["PairwiseDistance, p = 3"] = lambda: _pair(nn.PairwiseDistance(p=3, keepdim=True))


def _softmax_of_groups():
    layer = nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2], div_value=2.0)
    return around(layer, torch.randn(N, 4), call=lambda layer, h: layer.log_prob(h))


KINDS["AdaptiveLogSoftmaxWithLoss, log_prob"] = _softmax_of_groups


class _OwnLoss(nn.Module):
    """The target comes with the input: the module's output is the log probability."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2], div_value=2.0)

    def forward(self, X):
        return self.last(self.first(X[:, :4]).tanh(), X[:, 4].long())[0]


def _own_loss():
    y = torch.arange(N) % 5
    X = torch.cat([torch.randn(N, 4), y.unsqueeze(1)], 1)
    return Kind(_OwnLoss(), X, y.float(), loss=lambda outputs, y: -outputs)


KINDS["AdaptiveLogSoftmaxWithLoss"] = _own_loss


class _Containers(nn.Module):
    """Layers and parameters by list and by dict."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 3), nn.Tanh()])
        self.by_name = nn.ModuleDict({"head": nn.Linear(3, 3)})
        self.scales = nn.ParameterList([torch.ones(3), torch.rand(3)])
        self.shifts = nn.ParameterDict({"last": torch.rand(3)})

    def forward(self, X):
        for layer, scale in zip(self.layers, self.scales, strict=True):
            X = layer(X) * scale
        return self.by_name["head"](X) + self.shifts["last"]


KINDS["ModuleList, ModuleDict, ParameterList, ParameterDict"] = lambda: Kind(
    _Containers(), torch.randn(N, 4), labels()
)
KINDS["LazyLinear"] = lambda: around(nn.LazyLinear(3), torch.randn(N, 4))


def _lazy_without_shape():
    module = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    return Kind(module, torch.randn(N, 4), labels(), refused="lazy parameters")


KINDS["LazyLinear without a shape"] = _lazy_without_shape


def _frozen_layer():
    kind = around(nn.Linear(4, 3), torch.randn(N, 4))
    kind.module.layer.requires_grad_(False)
    return kind


KINDS["a frozen layer"] = _frozen_layer


def _affine_grid():
    def call(layer, h):
        grid = F.affine_grid(layer(h.mean((2, 3))).view(-1, 2, 3), [len(h), 2, 2, 2])
        return F.grid_sample(h, grid, align_corners=False)

    return around(nn.Linear(2, 6), torch.randn(N, 1, 3, 3), call=call)


KINDS["F.affine_grid and F.grid_sample"] = _affine_grid
KINDS["F.interpolate, area"] = lambda: around(
    nn.Identity(),
    torch.randn(N, 1, 4, 4),
    call=lambda _, h: F.interpolate(h, size=2, mode="area"),
)
KINDS["F.interpolate, antialiased"] = lambda: around(
    nn.Identity(),
    torch.randn(N, 1, 4, 4),
    call=lambda _, h: F.interpolate(h, size=3, mode="bilinear", antialias=True),
)
