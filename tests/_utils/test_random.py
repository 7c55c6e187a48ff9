"""Seeds: what is none is refused, not rounded to one."""

import numpy as np
import pytest
import torch

from flatmin._utils.random import make_generator


@pytest.mark.parametrize("seed", [0.5, "0", [1], np.float64(2), torch.ones(())])
def test_what_is_no_seed(seed):
    with pytest.raises(ValueError, match=r"rng .* an integer of 64 bits or None. Got"):
        make_generator(seed)


def test_integers_of_numpy_are_seeds():
    a, b = (torch.rand(3, generator=make_generator(s)) for s in (3, np.int64(3)))
    assert torch.equal(a, b)
