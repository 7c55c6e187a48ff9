"""
Curvature, noise and sharpness of three networks
================================================

Curvature, gradient noise and sharpness of three networks, three lines each.

A flatmin estimator on handwritten digits, a convolutional network that skorch has
trained on the same digits as images, and a transformer block on sequences of tokens in
plain PyTorch. Nothing in the last two knows of flatmin.
"""

import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    SharpnessScorer,
)
from flatmin.plotting import AlignmentDisplay

K = 10  # eigenpairs
QUANTITIES = ["overlap", "Tr(HΣ)", "Tr(H)Tr(Σ)/D", "anisotropy gain", "trace alignment"]


def digits(n=500):
    """Return digits as rows of 64 numbers."""
    X, y = load_digits(return_X_y=True)
    return (X[:n] / 16).astype("float32"), y[:n]


def flatmin_estimator():
    """Train a perceptron by SGD; a flatmin estimator keeps its training data."""
    clf = NoisyDiffusionClassifier(lr=0.1, max_iter=1500, random_state=0)
    return clf.fit(*digits()), None, ()


def skorch_net():
    """Train a small convolutional network with skorch, on logits."""
    X, y = digits()
    X = X.reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 10),
        ),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.003,
        max_epochs=30,
        batch_size=50,
        train_split=None,
        verbose=0,
    )  # fmt: skip
    return net.fit(X, y), None, (X, y)


class TokenClassifier(nn.Module):
    """Says which of a few tokens a sequence holds most often."""

    def __init__(self, n_tokens=4, length=10, width=16):
        super().__init__()
        self.token = nn.Embedding(n_tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 32, batch_first=True)
        self.head = nn.Linear(width, n_tokens)

    def forward(self, X):
        return self.head(self.block(self.token(X) + self.position).mean(1))


def torch_module():
    """Train a transformer block by a loop of one's own."""
    torch.manual_seed(0)
    X = torch.randint(0, 4, (400, 10))
    y = nn.functional.one_hot(X).sum(1).argmax(1)
    net = TokenClassifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    for step in range(400):
        batch = torch.arange(20) + 20 * step
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X[batch % 400]), y[batch % 400])
        loss.backward()
        optimizer.step()
    return net, "cross_entropy", (X, y)


def report(title, model, loss, data, ax):
    """Print what there is to know, draw the alignment, and check what has to hold."""
    # The three lines. Without data, fit takes those that the estimator still holds.
    curvature = CurvatureAnalyzer(model, loss=loss, random_state=0).fit(*data)
    noise = NoiseCovarianceAnalyzer(model, loss=loss, random_state=0).fit(*data)
    sharpness = SharpnessScorer(model, loss=loss).fit(*data)

    pairs, trace = curvature.eigen(K), curvature.trace()
    spectrum = curvature.density(n_steps=20)
    alignment = noise.alignment(K)
    risk = curvature.risk_
    loss_value = float(risk.value(risk.params()))
    print(f"\n{title}: {risk.n_params} parameters, loss {loss_value:.4f}\n")
    print(pairs, trace, noise.trace(), "", sep="\n")
    print(alignment.to_frame().loc[QUANTITIES].to_string(float_format="{:.4g}".format))
    AlignmentDisplay.from_results(alignment).plot(ax)
    ax.set_title(title)
    print(f"\nsharpness at s = 0.01: {sharpness.sharpness_:.2e}", end=" ")
    print(f"± {sharpness.stderr_:.0e}; second order {0.01**2 / 2 * trace.value:.2e}")

    assert pairs.converged.all()
    # Two estimates of Tr(H), each with its own error.
    mean, stderr = spectrum.moment(1)
    error = math.hypot(trace.stderr, risk.n_params * stderr)
    assert abs(trace.value - risk.n_params * mean) < 5 * error
    # The noise has the directions of the curvature, not those of chance.
    assert alignment["overlap"] > 10 * K / risk.n_params
    assert alignment["anisotropy gain"] > 10
    return {
        "parameters": risk.n_params,
        "loss": loss_value,
        "λ₁": pairs.eigenvalues[0],
        "Tr(H)": trace.value,
        "Tr(Σ)": float(noise.trace()),
        "overlap": alignment["overlap"],
        "gain": alignment["anisotropy gain"],
        "sharpness": sharpness.sharpness_,
    }


def main():
    """Train, analyse, compare."""
    models = {
        "a flatmin estimator": flatmin_estimator(),
        "a skorch net": skorch_net(),
        "a PyTorch module": torch_module(),
    }
    _, axes = plt.subplots(1, len(models), figsize=(12, 3.6), layout="constrained")
    rows = {
        title: report(title, *model, ax)
        for (title, model), ax in zip(models.items(), axes, strict=True)
    }
    print("\n", pd.DataFrame(rows).T.to_string(float_format="{:.4g}".format), sep="")


if __name__ == "__main__":
    main()
    plt.show()
