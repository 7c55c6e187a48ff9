"""New labels: sequences, what is refused, and how often a label changes."""

import pytest
import torch
from torch import nn

from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk
from flatmin.risk.label_noise import LabelDraw, label_slopes
from flatmin.risk.losses.cross_entropy import CrossEntropy

from ._problems import empirical_risk, generator
from ._statistics import BLOCK, assert_distribution

N, C, T = 7, 3, 2


def sequences():
    """Return a risk with a label at each of two positions, and its X."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, C * T), nn.Unflatten(1, (C, T))).double()
    X = torch.randn(N, 2, generator=generator(1), dtype=torch.float64)
    y = torch.randint(C, (N, T), generator=generator(2))
    return EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=3), X, y


def test_each_position_has_a_label_of_its_own():
    risk, X, y = sequences()
    theta, p = risk.params(), 0.3
    law = make_noise_law("label_noise", flip_probability=p)
    law.check(risk)
    expected = torch.zeros(risk.n_params, risk.n_params, dtype=torch.float64)
    for x, labels in zip(X, y, strict=True):
        # θ is the weight, (C T, 2) by rows, and the bias.
        J = torch.cat([torch.kron(torch.eye(C * T).double(), x), torch.eye(C * T)], 1)
        for t, label in enumerate(labels):
            q = torch.full((C,), p / (C - 1), dtype=torch.float64)
            q[label] = 1 - p
            rows = J.view(C, T, -1)[:, t]
            expected += rows.T @ (q.diag() - q.outer(q)) @ rows / T**2 / N**2
    covariance = law.covariance(risk, theta, None)
    torch.testing.assert_close(covariance.to_dense(), expected)
    torch.testing.assert_close(covariance.trace(), expected.trace())
    rng, mean = generator(), risk.gradient(theta)
    draws = [law.noisy_gradient(risk, theta, None, rng)[1] for _ in range(150 * BLOCK)]
    assert_distribution(torch.stack(draws) - mean, expected)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_a_label_becomes_each_of_the_others_alike(p):
    n, n_classes = 40000, 4
    targets = torch.arange(n) % n_classes
    uniform = torch.rand(n, generator=generator(), dtype=torch.float64)
    draw = LabelDraw(0.0, p, centred=False)
    change = -label_slopes(CrossEntropy(), targets, uniform, (n_classes,), draw)
    new = (change + nn.functional.one_hot(targets)).argmax(1)
    shift = (new - targets) % n_classes
    share = shift.bincount(minlength=n_classes) / n
    expected = torch.tensor([1 - p, p / 3, p / 3, p / 3])
    torch.testing.assert_close(share, expected, atol=0.012, rtol=0)


def loss_without_labels(outputs, targets):
    return outputs.square().mean(1)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (loss_without_labels, torch.zeros(4, 3)),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 1])), torch.arange(4) % 3),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.arange(4) % 3),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, -100, 2])),
        ("cross_entropy", torch.eye(4, 3)),
    ],
)
def test_labels_that_cannot_be_drawn_are_refused(loss, y):
    risk = EmpiricalRisk(nn.Linear(2, 3), loss, torch.ones(4, 2), y)
    law = make_noise_law("label_noise")
    with pytest.raises(ValueError, match=r"needs labels to draw anew.*use one of"):
        law.check(risk)


def test_plain_labels_of_a_loss_module_pass():
    risk = EmpiricalRisk(
        nn.Linear(2, 3), nn.CrossEntropyLoss(), torch.ones(4, 2), torch.arange(4) % 3
    )
    make_noise_law("label_noise").check(risk)
    make_noise_law("label_noise").check(empirical_risk("weighted"))
