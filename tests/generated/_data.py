"""Numbers, labels and weights: the same values in many dtypes, strides and kinds."""

import numpy as np
import torch
from hypothesis import strategies as st

from ._draws import seeds, some
from ._reference import plain

SIGNED = ["int8", "int16", "int32", "int64"]
UNSIGNED = ["uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]


def _flipped(array):
    return np.flip(np.flip(array).copy())


def _spread(array):
    wide = np.zeros((2 * len(array) + 1, *array.shape[1:]), array.dtype)
    wide[1::2] = array
    return wide[1::2]


def _read_only(array):
    array.flags.writeable = False
    return array


def _channels_behind(tensor):
    if tensor.ndim == 1:
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _windows(tensor):
    """Overlapping views of one line of numbers: entry i, j is number i + j of it."""
    return tensor.flatten().as_strided(tensor.shape, [1] * tensor.ndim)


def _with_grad(tensor):
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


# What each makes of an array; those that repeat numbers change the values.
FORMS = {
    "NumPy": np.array,
    "Fortran": np.asfortranarray,
    "negative strides": _flipped,
    "every second": _spread,
    "read-only": _read_only,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "list": lambda a: a.tolist(),
    "tensor": torch.from_numpy,
    "transposed": lambda a: torch.from_numpy(a.T.copy()).permute(*range(a.ndim)[::-1]),
    "channels last": lambda a: _channels_behind(torch.from_numpy(a)),
    "stride 0": lambda a: torch.from_numpy(a)[:1].expand(a.shape),
    "columns alike": lambda a: torch.from_numpy(a)[..., :1].expand(a.shape),
    "windows": lambda a: _windows(torch.from_numpy(a)),
    "steps": lambda a: torch.from_numpy(_spread(a)),
    "with grad": lambda a: _with_grad(torch.from_numpy(a)),
}


forms = some(list(FORMS))


@st.composite
def numbers(draw, shape, kinds=(*FLOATS, *SIGNED, *UNSIGNED, "bool")):
    """Numbers of a scale of 1e-6 to 1e6, of any kind and in any form."""
    kind, form = draw(some(kinds)), draw(forms)
    rng = np.random.default_rng(draw(seeds))
    values = rng.standard_normal(shape)
    if kind == "float16":
        values *= 10.0 ** draw(st.integers(-2, 2))
    elif kind in FLOATS:
        values *= 10.0 ** draw(st.integers(-6, 6))
    elif kind in SIGNED:
        values = (3 * values).round()
    else:
        values = np.abs(2 * values).round()
    return FORMS[form](values.astype(kind))


@st.composite
def integers(draw, shape, high, kinds):
    """Indices from 0 to high - 1, of any kind and in any form."""
    kind, form = draw(some(kinds)), draw(forms)
    low = draw(st.integers(0, high - 1))  # gaps, or one class only
    rng = np.random.default_rng(draw(seeds))
    values = rng.integers(low, high, shape)
    return FORMS[form](values.astype(kind))


@st.composite
def probabilities(draw, shape):
    kind, form = draw(some([*FLOATS, "int64", "uint8", "bool"])), draw(forms)
    values = np.random.default_rng(draw(seeds)).uniform(size=shape)
    if kind not in FLOATS or draw(st.booleans()):
        values = values.round()
    return FORMS[form](values.astype(kind))


@st.composite
def weights(draw, n):
    """Sample weights that mean something; None for none."""
    rng = np.random.default_rng(draw(seeds))
    w = rng.uniform(0.1, 2, n)
    kind = draw(
        some(["none", "any", "zeros", "one", "equal", "wide", "scaled", "int", "bool"])
    )
    if kind == "none":
        return None
    if kind == "zeros":
        w[rng.permutation(n)[: n // 2]] = 0
    elif kind == "one":
        w[np.arange(n) != rng.integers(n)] = 0
    elif kind == "equal":
        w[:] = 1
    elif kind == "wide":
        w = 10.0 ** rng.uniform(-20, 20, n)
    elif kind == "scaled":
        w *= 10.0 ** draw(st.integers(-320, 307))
    elif kind == "int":
        w = rng.integers(1, 5, n)
    elif kind == "bool":
        w = np.arange(n) % 2 == 0
    formed = FORMS[draw(forms)](w)
    return formed if plain(formed).any() else w  # the first is repeated: a zero
