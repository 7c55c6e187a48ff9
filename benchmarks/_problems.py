"""The problems that everything is timed on, and the unit of time of each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from flatmin.datasets import load_noisy_fashion_mnist, make_cubic_regression
from flatmin.modules import MLP, LeNet, cubic_regression_mlp

__all__ = ["BATCH_SIZE", "Problem", "flat", "make_problem", "split_like"]

BATCH_SIZE = 20  # m of the noise laws


@dataclass(frozen=True)
class Problem:
    """A network on data, with its loss in PyTorch's and in flatmin's words."""

    name: str
    module: nn.Module
    criterion: nn.Module
    loss: str
    X: Tensor
    y: Tensor
    n_components: int  # eigenpairs to ask for
    warmup: int  # steps of gradient descent to the θ that is measured at
    warmup_lr: float
    lr: float
    source: str

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def theta(self) -> Tensor:
        # Not by parameters_to_vector: it cannot flatten channels-last weights.
        return flat(self.params)

    def at(self, theta: Tensor) -> Problem:
        """Return the problem with a module of its own, at θ."""
        module = copy.deepcopy(self.module)
        vector_to_parameters(theta.clone(), module.parameters())
        return self._with(module, self.X, self.y)

    def channels_last(self) -> Problem:
        """Return the problem in the layout in which convolutions are fastest."""
        if self.X.ndim != 4:
            return self
        module = copy.deepcopy(self.module).to(memory_format=torch.channels_last)
        # One channel leaves PyTorch's channels-last strides ambiguous; these are not.
        _, c, h, w = self.X.shape
        X = torch.empty_strided(self.X.shape, (c * h * w, 1, w * c, c)).copy_(self.X)
        return self._with(module, X, self.y)

    def double(self) -> Problem:
        return self._to(torch.float64)

    def single(self) -> Problem:
        return self._to(torch.float32)

    def _to(self, dtype: torch.dtype) -> Problem:
        X, y = (
            part.to(dtype) if part.is_floating_point() else part
            for part in (self.X, self.y)
        )
        return self._with(copy.deepcopy(self.module).to(dtype), X, y)

    def unit(self) -> Callable[[], object]:
        """Return what takes the time b: the best bare gradient."""
        fast = self.channels_last()
        return lambda: torch.autograd.grad(
            fast.criterion(fast.module(fast.X), fast.y), fast.params
        )

    def descend(self) -> Tensor:
        """Return θ after the warm-up, by a loop in plain PyTorch."""
        fast = self.channels_last()
        optimizer = torch.optim.SGD(fast.params, lr=self.warmup_lr)
        for _ in range(self.warmup):
            optimizer.zero_grad()
            fast.criterion(fast.module(fast.X), fast.y).backward()
            optimizer.step()
        return fast.theta()

    def _with(self, module: nn.Module, X: Tensor, y: Tensor) -> Problem:
        return Problem(**{**vars(self), "module": module, "X": X, "y": y})


def flat(parts: Iterable[Tensor]) -> Tensor:
    """Return one vector of many tensors, of any strides, in row-major order."""
    return torch.cat([part.detach().reshape(-1) for part in parts])


def split_like(v: Tensor, params: list[nn.Parameter]) -> list[Tensor]:
    """Return the parts of a vector in the shapes of parameters."""
    parts = v.split([p.numel() for p in params])
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]


class TokenClassifier(nn.Module):
    """One transformer block on sequences of tokens, and a linear layer on its mean."""

    def __init__(self, n_tokens: int, length: int, width: int, n_classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_tokens, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.block(self.words(X) + self.places).mean(1))
        return outputs


def lenet(quick: bool) -> Problem:
    """Build the reference problem of the design: 1200 noisy images, D = 11,330."""
    # A few more than from which flatmin's risk traces its products.
    n_clean, n_corrupt = (760, 160) if quick else (1000, 200)
    try:
        X, y = load_noisy_fashion_mnist(
            n_clean,
            n_corrupt,
            download_if_missing=False,
            random_state=0,
            return_X_y=True,
        )
        source = f"Fashion-MNIST, {n_clean} images and {n_corrupt} with a wrong label"
    except OSError:
        X, y = _blobs(n_clean + n_corrupt)
        source = (
            f"STAND-IN: {len(X)} synthetic images, since Fashion-MNIST was not found "
            "(FLATMIN_DATA)"
        )
    return Problem(
        "lenet",
        LeNet().eval(),
        nn.CrossEntropyLoss(),
        "cross_entropy",
        torch.as_tensor(X),
        torch.as_tensor(y),
        n_components=3 if quick else 20,
        warmup=20 if quick else 3000,
        warmup_lr=0.1,
        lr=0.03,
        source=source,
    )


def _blobs(n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of ten kinds: a bright spot, its place by class, and noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n_samples)
    rows, columns = np.divmod(np.arange(28 * 28), 28)
    centres = rng.uniform(6, 22, (10, 2))[y] + rng.normal(0, 1.5, (n_samples, 2))
    distances = (rows - centres[:, :1]) ** 2 + (columns - centres[:, 1:]) ** 2
    X = np.exp(-distances / 30) + rng.uniform(0, 0.2, distances.shape)
    return X.clip(0, 1).astype(np.float32).reshape(-1, 1, 28, 28), y


def transformer(quick: bool) -> Problem:
    """Build a classifier of token sequences: which of three groups is the commonest."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(0, 48, (256 if quick else 1024, 24), generator=generator)
    y = nn.functional.one_hot(X % 3, 3).sum(1).argmax(1)
    return Problem(
        "transformer",
        TokenClassifier(48, 24, 32, 3).eval(),
        nn.CrossEntropyLoss(),
        "cross_entropy",
        X,
        y,
        n_components=3 if quick else 20,
        warmup=50 if quick else 1000,
        warmup_lr=0.1,
        lr=0.03,
        source=f"{len(X)} random sequences of 24 tokens",
    )


def tabular(quick: bool) -> Problem:
    """Build a multi-layer perceptron on scikit-learn's breast cancer data."""
    data = load_breast_cancer()
    X = (data.data - data.data.mean(0)) / data.data.std(0)
    return Problem(
        "tabular",
        MLP(30, 2, hidden_layer_sizes=(64, 64)).eval(),
        nn.CrossEntropyLoss(),
        "cross_entropy",
        torch.as_tensor(X, dtype=torch.float32),
        torch.as_tensor(data.target),
        n_components=3 if quick else 20,
        warmup=100 if quick else 1000,
        warmup_lr=0.1,
        lr=0.03,
        source=f"breast cancer data, {len(X)} rows of 30 numbers",
    )


def cubic(quick: bool) -> Problem:
    """Build the paper's regression: 20 points and 251 parameters."""
    X, y = make_cubic_regression(20)
    return Problem(
        "cubic",
        cubic_regression_mlp().eval(),
        nn.MSELoss(),
        "squared_error",
        torch.as_tensor(X, dtype=torch.float32),
        torch.as_tensor(y[:, None], dtype=torch.float32),
        n_components=5,
        warmup=100 if quick else 1000,
        warmup_lr=0.1,
        lr=0.01,
        source="20 points of a cubic",
    )


PROBLEMS = {make.__name__: make for make in (lenet, transformer, tabular, cubic)}


@functools.cache
def make_problem(name: str, quick: bool) -> Problem:
    """Build a problem, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PROBLEMS[name](quick)
