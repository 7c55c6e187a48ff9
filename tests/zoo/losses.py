"""Every loss of ``torch.nn``, on a small network."""

import torch
from torch import nn
from torch.nn import functional as F

from ._harness import Kind
from ._nets import N, labels

KINDS = {}
NOT_CONVEX = {"Tr Gᵢ": "convex in the output"}


def _net(n_out=3, last=None):
    layers = [nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, n_out)]
    return nn.Sequential(*layers, *([last] if last else []))


def _loss(name, loss, targets, *, n_out=3, last=None, **known):
    def build():
        module, X, y = _net(n_out, last), torch.randn(N, 4), targets()
        made = loss() if isinstance(loss, type) else loss
        return Kind(module, X, y, loss=made, **known)

    KINDS[name] = build


def _numbers(n=3):
    return torch.randn(N, n)


def _bits(n=3):
    return torch.randint(0, 2, (N, n)).float()


def _signs(n=3):
    return 2 * _bits(n) - 1


def _probabilities():
    return torch.randn(N, 3).softmax(1)


_loss("CrossEntropyLoss", nn.CrossEntropyLoss, labels)
_loss("CrossEntropyLoss, smoothed", nn.CrossEntropyLoss(label_smoothing=0.1), labels)
_loss("CrossEntropyLoss of probabilities", nn.CrossEntropyLoss(), _probabilities)
_loss("MSELoss", nn.MSELoss, _numbers)
_loss("MSELoss, summed", nn.MSELoss(reduction="sum"), _numbers)
_loss("L1Loss", nn.L1Loss(), _numbers)
_loss("HuberLoss", nn.HuberLoss(delta=0.5), _numbers)
_loss("SmoothL1Loss", nn.SmoothL1Loss(), _numbers)
_loss("BCEWithLogitsLoss", nn.BCEWithLogitsLoss, _bits)
_loss(
    "BCEWithLogitsLoss with pos_weight",
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])),
    _bits,
)
_loss("BCELoss", nn.BCELoss(), _bits, last=nn.Sigmoid())
_loss("NLLLoss", nn.NLLLoss(), labels, last=nn.LogSoftmax(1))
_loss("PoissonNLLLoss", nn.PoissonNLLLoss(), lambda: torch.rand(N, 3).mul(3).round())
_loss(
    "PoissonNLLLoss of rates, full",
    nn.PoissonNLLLoss(log_input=False, full=True),
    lambda: torch.rand(N, 3).mul(3).round(),
    last=nn.Softplus(),
)
_loss("KLDivLoss", nn.KLDivLoss(), _probabilities, last=nn.LogSoftmax(1))
_loss(
    "KLDivLoss of logarithms",
    nn.KLDivLoss(log_target=True),
    lambda: _probabilities().log(),
    last=nn.LogSoftmax(1),
)
_loss("HingeEmbeddingLoss", nn.HingeEmbeddingLoss(), _signs)
_loss("SoftMarginLoss", nn.SoftMarginLoss(), _signs)
_loss("MultiLabelSoftMarginLoss", nn.MultiLabelSoftMarginLoss(), _bits)


def _multi_margin(outputs, y, p=1, weight=None):
    own = outputs.gather(1, y[:, None])
    slack = (1 - own + outputs).clamp(min=0) ** p
    if weight is not None:
        slack = slack * weight[y][:, None]
    others = torch.ones_like(slack, dtype=torch.bool).scatter(1, y[:, None], False)
    return (slack * others).sum(1) / outputs.shape[1]


def _multilabel_margin(outputs, y):
    """Of two targets each, the third place being -1."""
    losses = []
    for output, target in zip(outputs, y, strict=True):
        targets = target[: int((target < 0).nonzero()[0])]
        others = [c for c in range(len(output)) if c not in targets.tolist()]
        slack = (1 - (output[targets][:, None] - output[others][None])).clamp(min=0)
        losses.append(slack.sum() / len(output))
    return torch.stack(losses)


_loss("MultiMarginLoss", nn.MultiMarginLoss(), labels, per_example=_multi_margin)
_loss(
    "MultiMarginLoss, squared",
    nn.MultiMarginLoss(p=2),
    labels,
    per_example=lambda f, y: _multi_margin(f, y, 2),
)
_loss(
    "MultiMarginLoss with weights",
    nn.MultiMarginLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
    labels,
    per_example=lambda f, y: _multi_margin(f, y, 1, torch.tensor([1.0, 2.0, 3.0])),
)
_loss(
    "MultiLabelMarginLoss",
    nn.MultiLabelMarginLoss(),
    lambda: torch.tensor([[0, 2, -1], [1, -1, -1], [2, -1, 0]])[labels()],
    per_example=_multilabel_margin,
)


# Examples weigh what they do in PyTorch: L is what the loss returns on all data.


def _weighted_classes(name, make, last=None, ignored=None):
    weight = torch.tensor([1.0, 2.0, 3.0])

    def build():
        y = labels()
        if ignored is not None:
            y[1], y[4] = ignored, ignored
        weight_of = weight.double()[y.clamp(min=0)] * (y != ignored)

        def per_example(outputs, target):
            log_p = outputs if last else outputs.log_softmax(1)
            t = target.clamp(min=0)
            w = weight.double()[t] * (target != ignored)
            return -w * log_p.gather(1, t[:, None])[:, 0] / weight_of.mean()

        return Kind(
            _net(last=last),
            torch.randn(N, 4),
            y,
            loss=make(weight),
            per_example=per_example,
        )

    KINDS[name] = build


_weighted_classes("CrossEntropyLoss with class weights", nn.CrossEntropyLoss)
_weighted_classes("NLLLoss with class weights", nn.NLLLoss, last=nn.LogSoftmax(1))


def _ignored(name, loss, ignored):
    def build():
        y = labels()
        y[1], y[4] = ignored, ignored
        counted = (y != ignored).double().mean()

        def per_example(outputs, target):
            losses = F.cross_entropy(
                outputs, target, reduction="none", ignore_index=ignored
            )
            return losses / counted

        module, X = _net(), torch.randn(N, 4)
        return Kind(module, X, y, loss=loss, per_example=per_example)

    KINDS[name] = build


_ignored("CrossEntropyLoss with ignore_index", nn.CrossEntropyLoss(ignore_index=2), 2)
_ignored("CrossEntropyLoss, -100 left out", nn.CrossEntropyLoss(), -100)
_ignored("cross_entropy, -100 left out", "cross_entropy", -100)


# Losses of more than outputs and targets, as a user writes them.


def _gaussian(outputs, y):
    return F.gaussian_nll_loss(
        outputs[:, :1], y, outputs[:, 1:].exp(), reduction="none"
    )


_loss(
    "GaussianNLLLoss",
    _gaussian,
    lambda: _numbers(1),
    n_out=2,
    refused=NOT_CONVEX,
)


class _GaussianOfVariance(nn.Module):
    """The loss as a part of a loss module."""

    def __init__(self):
        super().__init__()
        self.loss = nn.GaussianNLLLoss(reduction="none")

    def forward(self, outputs, y):
        return self.loss(outputs, y, torch.full_like(outputs, 0.5)).mean(1)


_loss("GaussianNLLLoss, known variance", _GaussianOfVariance, _numbers)


def _triplet(outputs, y):
    anchor, positive, negative = outputs.view(len(outputs), 3, 2).unbind(1)
    loss = nn.TripletMarginLoss(margin=2.0, reduction="none")
    return loss(anchor, positive, negative)


def _triplet_by_distance(outputs, y):
    loss = nn.TripletMarginWithDistanceLoss(
        distance_function=lambda a, b: 1 - F.cosine_similarity(a, b),
        margin=2.0,
        reduction="none",
    )
    return loss(*outputs.view(len(outputs), 3, 2).unbind(1))


def _cosine(outputs, y):
    loss = nn.CosineEmbeddingLoss(margin=-0.9, reduction="none")
    return loss(outputs[:, :2], outputs[:, 2:], y)


def _ranking(outputs, y):
    loss = nn.MarginRankingLoss(margin=1.0, reduction="none")
    return loss(outputs[:, 0], outputs[:, 1], y)


def _sign():
    return 2 * torch.randint(0, 2, (N,)).float() - 1


_loss("TripletMarginLoss", _triplet, _sign, n_out=6, refused=NOT_CONVEX)
_loss(
    "TripletMarginWithDistanceLoss",
    _triplet_by_distance,
    _sign,
    n_out=6,
    refused=NOT_CONVEX,
)
_loss("CosineEmbeddingLoss", _cosine, _sign, n_out=4, refused=NOT_CONVEX)
_loss("MarginRankingLoss", _ranking, _sign, n_out=2)


def _connectionist(outputs, y):
    """CTC takes (T, n, C), and targets of two letters."""
    log_p = outputs.view(len(outputs), 4, 3).transpose(0, 1).log_softmax(2)
    n = len(outputs)
    lengths = torch.full((n,), 4), torch.full((n,), 2)
    return F.ctc_loss(log_p, y, *lengths, reduction="none")


def _paths(outputs, y):
    """CTC by summing over all paths."""
    log_p = outputs.view(4, 3).log_softmax(1)
    found = []
    for path in torch.cartesian_prod(*[torch.arange(3)] * 4):
        merged = torch.unique_consecutive(path)
        if torch.equal(merged[merged != 0], y[0]):
            found.append(log_p[torch.arange(4), path].sum())
    return -torch.stack(found).logsumexp(0, keepdim=True)


# Its backward pass is a kernel, which is not differentiated.
_loss(
    "CTCLoss",
    _connectionist,
    lambda: torch.stack([torch.randperm(2) + 1 for _ in range(N)]),
    n_out=12,
    per_example=_paths,
    refused=dict.fromkeys(("H v", "ΣHᵢ²v/N"), "needs the second derivatives")
    | dict.fromkeys(("G v", "Tr Gᵢ"), "second derivative of _connectionist"),
)
_loss("squared_error", "squared_error", _numbers)


def _last_layer_in_the_loss():
    loss = nn.LinearCrossEntropyLoss(3, 4).requires_grad_(False)
    return Kind(_net(), torch.randn(N, 4), labels(4), loss=loss)


if hasattr(nn, "LinearCrossEntropyLoss"):  # in new versions of PyTorch
    KINDS["LinearCrossEntropyLoss"] = _last_layer_in_the_loss
_loss(
    "a focal loss",
    lambda f, y: F.cross_entropy(f, y, reduction="none").neg().expm1().square(),
    labels,
    refused=NOT_CONVEX,
)
_loss("log-cosh", lambda f, y: (f - y).cosh().log(), _numbers)


def _contrastive(outputs, y):
    z = F.normalize(outputs, dim=1)
    target = torch.arange(len(z)).roll(1)
    return F.cross_entropy(2 * z @ z.T, target, reduction="none")


_loss(
    "a contrastive loss", _contrastive, labels, refused="must not depend on the others"
)
_loss(
    "a loss that is averaged",
    lambda f, y: F.cross_entropy(f, y),
    labels,
    refused="one number for each",
)


class _Segmentation(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 3, 1)

    def forward(self, X):
        return self.last(self.conv(X).tanh())


KINDS["CrossEntropyLoss at positions"] = lambda: Kind(
    _Segmentation(), torch.randn(N, 1, 3, 3), torch.randint(0, 3, (N, 2, 2))
)
