"""New labels: sequences, what is refused, and how often a label changes."""

import pytest
import torch
from torch import nn

from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk
from flatmin.risk.label_noise import LabelDraw, label_slopes
from flatmin.risk.losses.cross_entropy import CrossEntropy
from flatmin.risk.losses.elementwise import BinaryCrossEntropy, SquaredError

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


def test_the_slopes_of_every_new_label_by_hand():
    """The slope in f is minus the one-hot label, as q - y' under cross-entropy.

    C = 3, label 1, p = 0.3: q = (0.15, 0.7, 0.15), and s - E s = q - e of the new one.
    """
    targets = torch.ones(3000, dtype=torch.long)
    uniform = torch.rand(3000, generator=generator(), dtype=torch.float64)
    draw = LabelDraw(0.0, 0.3)
    slopes = label_slopes(CrossEntropy(), targets, uniform, (3,), draw)
    centred, counts = slopes.unique(dim=0, return_counts=True)
    by_hand = [[-0.85, 0.7, 0.15], [0.15, -0.3, 0.15], [0.15, 0.7, -0.85]]
    torch.testing.assert_close(centred, torch.tensor(by_hand, dtype=torch.float64))
    # The mean of the three with their probabilities is 0, and each comes as often.
    q = torch.tensor([0.15, 0.7, 0.15], dtype=torch.float64)
    torch.testing.assert_close(q @ centred, torch.zeros(3, dtype=torch.float64))
    error = (q * (1 - q) / 3000).sqrt()
    assert ((counts / 3000 - q).abs() < 4 * error).all()


def test_the_slopes_of_the_elementwise_losses_by_hand():
    """Two outputs. Squared error: ∂/∂f ((f - y)²/2) = f - y, and y' = y + 0.5 z.

    Binary: ∂ℓ/∂f = (σ(f) - y)/2. A flip of 0 has the slope -1/2, of 1 it has 1/2; the
    mean over flips, p of it, is taken away.
    """
    z = torch.tensor([[1.0, -3.0]])
    y = torch.tensor([[0.0, 1.0]])
    slopes = label_slopes(SquaredError(), y, z, (2,), LabelDraw(0.5, 0.0))
    torch.testing.assert_close(slopes, torch.tensor([[-0.5, 1.5]]))
    for centred, mean in [(True, 0.2), (False, 0.0)]:
        draw = LabelDraw(0.0, 0.2, centred)
        loss = BinaryCrossEntropy()
        flipped = label_slopes(loss, y, torch.tensor([[0.1, 0.1]]), (2,), draw)
        expected = torch.tensor([[-(1 - mean) / 2, (1 - mean) / 2]])
        torch.testing.assert_close(flipped, expected)
        kept = label_slopes(loss, y, torch.tensor([[0.9, 0.9]]), (2,), draw)
        torch.testing.assert_close(kept, torch.tensor([[mean / 2, -mean / 2]]))


@pytest.mark.parametrize("match", ["none", "trace"])
def test_the_covariance_of_a_line_by_hand(match):
    """f = θ x on x = 1, 2, 3 and y = 0: sᵢ = 2 (f - y), Kᵢ = 4σ², C = (1/9) 4σ² Σ xᵢ².

    With a match C is Σ/m. At θ = 1 the gᵢ are 2 xᵢ² = 2, 8, 18.
    """
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(net.weight)
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    risk = EmpiricalRisk(net, "squared_error", x, 0 * x)
    theta = risk.params()
    law = make_noise_law("label_noise", sigma=0.5, match=match, batch_size=2)
    state = law.refresh(risk, theta, generator())
    variance = (4 + 64 + 324) / 3 - (28 / 3) ** 2  # of 2, 8, 18
    expected = 4 * 0.25 * (1 + 4 + 9) / 9 if match == "none" else variance / 2
    covariance = law.covariance(risk, theta, state).to_dense()
    assert float(covariance) == pytest.approx(expected)
    assert float(law.trace(risk, theta, state)) == pytest.approx(expected)


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
