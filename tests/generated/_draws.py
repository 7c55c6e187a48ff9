"""What is drawn everywhere: seeds, sizes, and the tensors that are asked about."""

import numpy as np
import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**16)
sizes = st.integers(1, 3)
some = st.sampled_from


def vector(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


# Ways to hand in a tensor of the right shape.
TENSORS = {
    "float64": lambda t: t,
    "float32": lambda t: t.float(),
    "float16": lambda t: t.half(),
    "int64": lambda t: (2 * t).round().long(),
    "steps": lambda t: torch.stack([t, t], -1)[..., 0],
    "stride 0": lambda t: t.flatten()[:1].expand(t.shape),
    "with grad": lambda t: t.clone().requires_grad_(),
}


@st.composite
def vectors(draw, *shape):
    return TENSORS[draw(some(list(TENSORS)))](vector(draw(seeds), *shape))


@st.composite
def index_vectors(draw, n, *shape):
    kind = draw(some([torch.int64, torch.int32]))
    rng = np.random.default_rng(draw(seeds))
    return torch.from_numpy(rng.integers(0, n, shape)).to(kind)
