"""What a risk cannot answer: arguments without a meaning, or with a doubtful one."""

import numpy as np
import torch
from hypothesis import strategies as st

from ._draws import some
from ._networks import N_WORDS
from ._reference import plain

NOT_NUMBERS = [None, "abc", ["a", "b"], [[1.0], [2.0, 3.0]], 1j, np.array([1j, 2j])]


def with_entry(array, index, value):
    """Return a float64 array with one other entry."""
    array = np.array(plain(array), dtype=float, order="C")
    array.reshape(-1)[index % array.size] = value
    return array


wild = some([np.nan, np.inf, -np.inf])
beyond_float32 = some([1e39, -1e300])
places = st.integers(0, 100)
containers = some([np.asarray, torch.from_numpy, lambda a: a.tolist()])


def at_construction(problem):
    """Return strategies of faulty arguments by the name of the argument at fault."""
    n, loss = problem.n_examples, problem.loss
    X, y = plain(problem.X), plain(problem.y)
    twice = np.stack([y, y], -1)
    ones = np.ones(n)
    weights = [
        *(with_entry(ones, i, w) for i in (0, n - 1) for w in (np.nan, np.inf, -1e-9)),
        *(0 * ones, np.ones(n + 1), np.ones((n, 1)), np.ones((n, 2)), 1.0, []),
        *NOT_NUMBERS[1:],
    ]
    found = {
        "X": [
            some([X[:0], X.flatten()[0], *NOT_NUMBERS]),
            st.just(np.concatenate([X, X], -1)) if takes_one_length(problem) else None,
        ],
        "y": [
            some([y[:0], y[:-1], np.concatenate([y, y]), y.flatten()[0], *NOT_NUMBERS]),
            None if _are_probabilities(twice, problem) else st.just(twice),
            _entry(y, wild),
        ],
        "sample_weight": [some(weights)],
        "chunk_size": [some([0, -1, 2.0, 2.5, True, np.nan, "2", [1], np.int64(-3)])],
        "loss": [some(["cross_entrop", "", None, 3, torch.nn.Linear, mean_square])],
        "dtype": [some(["float16", torch.int64, "single", 3])],
        "device": [some(["gpu", "cuda:77", 3.5])],
    }
    if problem.takes_indices:
        found["X"] += [_entry(X, some([N_WORDS, -1, 300, 0.5]))]
    else:
        found["X"] += [_entry(X, wild)]
        if problem.risk_dtype == torch.float32:
            found["X"] += [_entry(X, beyond_float32)]
    if loss.targets == "classes":
        found["y"] += [_entry(y, some([problem.output_shape[0], 255, -1, 0.5]))]
    elif loss.targets == "probabilities":
        found["y"] += [_entry(y, some([-1.0, 1.5, 255.0]))] if not loss.own else []
    elif problem.risk_dtype == torch.float32:
        found["y"] += [_entry(y, beyond_float32)]
    return {name: [s for s in kinds if s is not None] for name, kinds in found.items()}


def _are_probabilities(y, problem):
    """Say whether labels have become the probabilities of two classes."""
    of_two = y.shape[1:] == tuple(problem.output_shape)
    return problem.loss.targets == "classes" and of_two and y.dtype.kind == "f"


def takes_one_length(problem):
    """Return whether the module takes inputs of one length only."""
    return not problem.takes_indices and plain(problem.X).ndim == 2


def mean_square(f, y):
    return f.square().mean()


def _entry(array, values):
    def put(index, value, container):
        entry = with_entry(array, index, value)
        if (entry == entry.clip(-1000, 1000).round()).all():
            entry = entry.astype(int)
        return container(entry)

    return st.builds(put, places, values, containers)


# Arguments of a question, by what is odd about them: what is handed in, and the tensor
# that it stands for, or None where it has no meaning.


def bad_vectors(right):
    """Return odd forms of a tensor, which is not empty."""
    right = right.double()
    found = {
        "one too many": (torch.cat([right, right[:1]]), None),
        # As wide as θ they would be chains: see tests/risk/test_chains.py.
        "an axis in front": (torch.cat([right, right[:1]])[None], None),
        "an axis behind": (torch.stack([right] * (len(right) + 1), -1), None),
        "complex": (torch.complex(right, right + 1), None),
        "None": (None, None),
        "a string": ("abc", None),
        "NaN": (with_value(right, 0, torch.nan),) * 2,
        "infinity": (with_value(right, -1, torch.inf),) * 2,
        "an array": (right.numpy(), right),
        "a list": (right.tolist(), right),
        "bool": (right > 0, (right > 0).double()),
        "bfloat16": (right.bfloat16(), right.bfloat16().double()),
    }
    if len(right) > 1:  # some of these would broadcast
        found["the first"] = (right[:1], None)
        found["a tensor without axes"] = (right.flatten()[0], None)
        found["a number"] = (1.0, None)
        found["one too few"] = (right[:-1], None)
    return found


def with_value(tensor, index, value):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[index] = value
    return tensor


def bad_indices(n, right):
    """Return odd forms of indices of n examples, of shape (m,) or (b, m)."""
    right = right.long()
    found = {
        "none": (right[..., :0], None),
        "an axis in front": (right[None], None),
        "without axes": (right.flatten()[0], None),
        "a number": (0, None),
        "fractions": (right + 0.5, None),
        "NaN": (with_value(right.double(), 0, torch.nan), None),
        "n": (with_value(right, 0, n), None),
        "-n - 1": (with_value(right, -1, -n - 1), None),
        "None": (None, None),
        "a string": ("abc", None),
        "negative": (right - n, right),
        "float64": (right.double(), right),
        "uint8": (right.byte(), right),
        "an array": (right.numpy(), right),
        "a list": (right.tolist(), right),
    }
    mask = torch.arange(n) % 2 == 0
    if right.ndim == 1:
        found["a mask"] = (mask, mask.nonzero().flatten())
        found["a mask of another length"] = (torch.cat([mask, mask]), None)
        found["an empty mask"] = (torch.zeros(n, dtype=torch.bool), None)
    else:
        found["an axis too few"] = (right[0], None)
        found["bool"] = (right % 2 == 0, None)
    return found
