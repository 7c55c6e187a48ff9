"""Three networks that nobody designed for flatmin, small enough for all of H."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _problems import Problem, TokenClassifier
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

try:
    import rtdl_revisiting_models
except ModuleNotFoundError:
    rtdl_revisiting_models = None

__all__ = ["NETWORKS", "make_network", "train"]


class SequenceClassifier(nn.Module):
    """An LSTM over the numbers of a sequence, and a linear layer on its last state."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        states, _ = self.recurrent(X)
        outputs: Tensor = self.head(states[:, -1])
        return outputs


def published(n: int, width: int) -> Problem:
    """Build the tabular ResNet of rtdl_revisiting_models, with batch norm."""
    if rtdl_revisiting_models is None:
        raise SystemExit(
            "The published network is that of rtdl_revisiting_models, which is not "
            "installed: pip install rtdl_revisiting_models, or choose other --problems."
        )
    data = load_breast_cancer()
    X = (data.data - data.data.mean(0)) / data.data.std(0)
    module = rtdl_revisiting_models.ResNet(
        d_in=30,
        d_out=2,
        n_blocks=2,
        d_block=width,
        d_hidden_multiplier=2.0,
        dropout1=0.2,
        dropout2=0.0,
    )
    X, y = torch.as_tensor(X[:n], dtype=torch.float32), torch.as_tensor(data.target[:n])
    source = f"rtdl_revisiting_models.ResNet on {n} rows of the breast cancer data"
    return _problem("published", module, X, y, source)


def lstm(n: int, width: int) -> Problem:
    """Build an LSTM that tells which of three frequencies a noisy wave has."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (n,), generator=rng)
    time = torch.arange(12)
    phase = torch.rand(n, 1, generator=rng)
    waves = torch.sin(6.28 * (phase + (1 + y[:, None]) * time / 12))
    X = waves + 0.5 * torch.randn(n, 12, generator=rng)
    source = f"an LSTM on {n} noisy waves of 12 numbers"
    return _problem("lstm", SequenceClassifier(width, 3), X[..., None], y, source)


def transformer(n: int, width: int) -> Problem:
    """Build a transformer block that says which of three groups is the commonest."""
    rng = torch.Generator().manual_seed(0)
    X = torch.randint(0, 12, (n, 10), generator=rng)
    y = nn.functional.one_hot(X % 3, 3).sum(1).argmax(1)
    source = f"nn.TransformerEncoderLayer on {n} sequences of 10 tokens"
    return _problem("transformer", TokenClassifier(12, 10, width, 3), X, y, source)


def _problem(
    name: str, module: nn.Module, X: Tensor, y: Tensor, source: str
) -> Problem:
    return Problem(
        name,
        module,
        nn.CrossEntropyLoss(),
        "cross_entropy",
        X,
        y,
        n_components=5,
        warmup=200,
        warmup_lr=0.01,
        lr=0.03,
        source=source,
    )


NETWORKS: dict[str, Callable[[int, int], Problem]] = {
    make.__name__: make for make in (published, lstm, transformer)
}


def make_network(name: str, quick: bool) -> Problem:
    """Build a network and its data, the same in every process."""
    n, width = (40, 4) if quick else (120, 12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name](n, width)


def train(problem: Problem) -> Tensor:
    """Train the module by Adam as its user would, and return θ in eval mode."""
    module = problem.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=problem.warmup_lr)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(problem.warmup):
            batch = torch.arange(20 * step, 20 * step + 20) % len(problem.X)
            optimizer.zero_grad()
            problem.criterion(module(problem.X[batch]), problem.y[batch]).backward()
            optimizer.step()
    module.eval()
    return problem.theta()
