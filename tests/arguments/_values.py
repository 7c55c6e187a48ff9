"""Some seventy things that an argument may be by mistake."""

from __future__ import annotations

import decimal
import pathlib

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import flatmin


def wrong_values() -> dict[str, object]:
    """Return new ones, by name; many are right for some argument."""
    masked = np.ma.array([1.0, 2.0, 3.0], mask=[True, False, False])
    objects = np.array([1, "a", None], dtype=object)
    return {
        "None": None,
        "True": True,
        "0": 0,
        "-1": -1,
        "1.5": 1.5,
        "nan": float("nan"),
        "inf": float("inf"),
        "-inf": float("-inf"),
        "1e39": 1e39,
        "-1e39": -1e39,
        "1e308": 1e308,
        "5e-324": 5e-324,
        "10**30": 10**30,
        "2**63": 2**63,
        "-2**70": -(2**70),
        "uint8 0": np.uint8(0),
        "float16 nan": np.float16("nan"),
        "Decimal": decimal.Decimal(1),
        "1j": 1j,
        "complex64": np.complex64(1j),
        "''": "",
        "'x'": "x",
        "surrogate": "\ud800",
        "b'x'": b"x",
        "Path": pathlib.Path("no/such/file"),
        "[]": [],
        "[1]": [1],
        "[None]": [None],
        "['a', 'b']": ["a", "b"],
        "[[1], [1, 2]]": [[1], [1, 2]],
        "()": (),
        "{}": {},
        "{1: 2}": {1: 2},
        "{'x': None}": {"x": None},
        "set": {1},
        "range": range(3),
        "iterator": iter([1, 2]),
        "object": object(),
        "class": int,
        "ellipsis": ...,
        "lambda no argument": lambda: 0,
        "lambda five arguments": lambda a, b, c, d, e: 0,
        "len": len,
        "Linear(2, 2)": nn.Linear(2, 2),
        "nn.Module": nn.Module,
        "optimizer class": torch.optim.SGD,
        "not fitted": flatmin.NoisyDiffusionClassifier(),
        "LogisticRegression": LogisticRegression(),
        "law": flatmin.make_noise_law("sgd"),
        "empty array": np.array([]),
        "array of nothing": np.array(1.0),
        "array": np.ones(3),
        "square array": np.eye(3),
        "array of nan": np.full(3, np.nan),
        "masked": masked,
        "object array": objects,
        "text array": np.array(["a", "b", "c"]),
        "dates": np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
        "complex array": np.ones(3) + 1j,
        "sparse matrix": scipy.sparse.eye(3),
        "DataFrame": pd.DataFrame({"a": [1.0, 2.0]}),
        "Series with NA": pd.Series([1, None, 2], dtype="Int64"),
        "empty tensor": torch.tensor([]),
        "tensor of nothing": torch.tensor(1.0),
        "tensor": torch.ones(3),
        "three axes": torch.ones(2, 2, 2),
        "complex tensor": torch.ones(3) + 1j,
        "mask": torch.tensor([True, False, True]),
        "integers": torch.arange(3),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "sparse tensor": torch.eye(3).to_sparse(),
        "meta tensor": torch.ones(3, device="meta"),
        "nan tensor": torch.full((3,), torch.nan),
        "Generator": torch.Generator(),
        "RandomState": np.random.RandomState(0),
    }


def spoilt_values(valid: object) -> dict[str, object]:
    """Return what is close to a valid array or tensor."""
    if isinstance(valid, np.ndarray) and valid.ndim and valid.dtype.kind in "fiu":
        mask = np.zeros(valid.shape, bool)
        mask.flat[0] = True
        return {
            "its masked": np.ma.array(valid, mask=mask),
            "its complex": valid + 1j,
            "its objects": valid.astype(object),
            "its text": valid.astype(str),
            "its half": valid[: len(valid) // 2],
            "its nan": valid * np.nan,
            "its complex tensor": torch.as_tensor(valid) + 1j,
            "its meta tensor": torch.as_tensor(valid).to("meta"),
        }
    if isinstance(valid, Tensor) and valid.ndim:
        return {
            "its array": valid.numpy(),
            "its complex": valid + 1j,
            "its half": valid[: len(valid) // 2],
            "its nan": valid * torch.nan,
            "its meta": valid.to("meta"),
            "its sparse": valid.to_sparse(),
            "its list": valid.tolist(),
            "its axis more": valid[None, None],
        }
    return {}
