"""Storable values come back bit for bit, and no bytes are anything else."""

import json
import math
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from flatmin._runs.storable_bytes import from_bytes, to_bytes

RNG = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(2**127), 0.1, -0.0, math.inf, 5e-324, "σ\ud800\0", ""),
        *([], (), set(), {}, [1, (2, [3])], {"a"}, {1}, {1: "a", "1": {}, None: (0,)}),
        *(OrderedDict(b=1, a=2), Counter(a=3), {"tensor": [1]}, {"list": None}),
    ],
    ids=repr,
)
def test_values_and_their_kinds(value):
    found = from_bytes(to_bytes(value, "it"))
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)  # 1 is no True, and 0.0 no -0.0


def test_nan():
    assert math.isnan(from_bytes(to_bytes(math.nan, "it")))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4, generator=RNG),
        torch.randn(3, 4, generator=RNG).T,
        torch.randn(5, 6, generator=RNG)[:, 1:4],
        torch.randn(4, generator=RNG)[::2],
        torch.tensor(2.5, dtype=torch.float64),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([math.nan, -0.0, math.inf], dtype=torch.bfloat16),
        torch.get_rng_state(),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}",
)
def test_tensors_bit_for_bit(tensor):
    (found,) = from_bytes(to_bytes((tensor,), "it"))
    assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride())
    torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)


def test_an_expanded_tensor_is_written_out():
    found = from_bytes(to_bytes(torch.ones(1).expand(3), "it"))
    assert found.tolist() == [1.0] * 3


def test_other_tensors_are_refused():
    with pytest.raises(TypeError, match="dense tensors of numbers"):
        to_bytes(torch.eye(2).to_sparse(), "it")


def forged(node, rest=b""):
    text = node if isinstance(node, bytes) else json.dumps(node).encode()
    return len(text).to_bytes(8, "big") + text + rest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        forged(b"[1"),
        forged([1]),
        forged({"tensor": [1], "list": []}),
        forged({"eval": ["1"]}),
        forged({"dict": [[{"list": []}, 1]]}),
        forged({"dict": [1]}),
        forged({"Counter": 3}),
        forged({"dict": [["flatmin.ndarray", 1]]}),
        forged(1, b"0"),
        forged(b'{"list":[' * 100_000),
        # Tensors that would hold what is not there.
        forged({"tensor": ["float32", [10**15], [1]]}, b"0" * 4),
        forged({"tensor": ["float32", [10**15], [0]]}, b"0" * 4),
        forged({"tensor": ["float32", [2**40, 2**40], [1, 1]]}, b"0" * 4),
        forged({"tensor": ["float32", [2], [-1]]}, b"0" * 8),
        forged({"tensor": ["float32", [-2], [1]]}, b"0" * 8),
        forged({"tensor": ["float32", [1, 2], [1]]}, b"0" * 8),
        forged({"tensor": ["float32", [1] * 65, [1] * 65]}, b"0" * 4),
        forged({"tensor": ["float32", [True], [1]]}, b"0" * 4),
        forged({"tensor": ["qint8", [1], [1]]}, b"0"),
        forged({"tensor": ["bool", [1], [1]]}, b"\2"),
    ],
    ids=lambda content: str(content[8:50]),
)
def test_no_other_bytes_are_read(content):
    with pytest.raises(ValueError, match=r"."):
        from_bytes(content)


def test_a_flip_anywhere_is_a_value_or_an_error():
    whole = to_bytes({"a": torch.arange(9.0), "b": [1, (2.5, "x")], "c": None}, "it")
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        altered = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            altered[place] ^= 1 << rng.integers(8)
        try:
            from_bytes(bytes(altered))
        except ValueError:
            continue
