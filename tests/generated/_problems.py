"""A network, a loss, data and options that fit together."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from ._data import FLOATS, SIGNED, UNSIGNED, integers, numbers, probabilities, weights
from ._draws import sizes, some
from ._losses import Loss, losses
from ._networks import N_WORDS, networks


@dataclass
class Problem:
    """The arguments of a risk, and what its numbers are to be compared with."""

    module: nn.Module
    loss: Loss
    X: Any
    y: Any
    takes_indices: bool
    output_shape: tuple
    options: dict = field(default_factory=dict)

    @property
    def n_examples(self):
        return len(self.X)

    @property
    def n_params(self):
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    @property
    def risk_dtype(self):
        dtype = self.options.get("dtype") or next(self.module.parameters()).dtype
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype

    def but(self, **changes):
        """Return the same with some arguments replaced, options of the risk too."""
        own = {k: changes.pop(k) for k in ("X", "y", "loss") if k in changes}
        return replace(self, **own, options={**self.options, **changes})


@st.composite
def targets(draw, loss, n, output_shape):
    c, *positions = output_shape
    if loss.targets == "classes":
        kinds = [*SIGNED, *UNSIGNED, *FLOATS, *(["bool"] if c == 2 else [])]
        return draw(integers((n, *positions), c, kinds))
    shape = (n, *output_shape)
    if output_shape == (1,) and not loss.own:
        shape = draw(some([(n,), (n, 1)]))
    if loss.targets == "probabilities":
        return draw(probabilities(shape))
    return draw(numbers(shape))


@st.composite
def problems(draw):
    """A risk that is to be right: nothing in it is wrong, however odd it looks."""
    n, c = draw(st.integers(1, 9)), draw(sizes)
    module, shape = draw(networks(c))
    takes_indices = any(isinstance(m, nn.Embedding) for m in module.modules())
    if takes_indices:
        X = draw(integers((n, *shape), N_WORDS, [*SIGNED, *UNSIGNED]))
        example = torch.zeros(1, *shape, dtype=torch.long)
    else:
        X = draw(numbers((n, *shape)))
        example = torch.zeros(1, *shape, dtype=next(module.parameters()).dtype)
    output_shape = tuple(module(example).shape[1:])
    loss = draw(losses(c))
    options = {
        "sample_weight": draw(weights(n)),
        "chunk_size": draw(st.none() | sizes | st.integers(1, 12).map(np.int64)),
        "dtype": draw(some([None, "float32", "float64", torch.float64])),
    }
    y = draw(targets(loss, n, output_shape))
    return Problem(module, loss, X, y, takes_indices, output_shape, options)
