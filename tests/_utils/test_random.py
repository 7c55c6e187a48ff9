"""Seeds: what is none is refused, not rounded to one."""

import numpy as np
import pytest
import torch

from flatmin._utils.random import make_generator, make_seed


@pytest.mark.parametrize("seed", [0.5, "0", [1], np.float64(2), torch.ones(())])
def test_what_is_no_seed(seed):
    with pytest.raises(ValueError, match=r"rng .* an integer of 64 bits or None. Got"):
        make_generator(seed)


def test_integers_of_numpy_are_seeds():
    a, b = (torch.rand(3, generator=make_generator(s)) for s in (3, np.int64(3)))
    assert torch.equal(a, b)


def test_a_generator_is_handed_on():
    generator = torch.Generator()
    assert make_generator(generator) is generator
    with pytest.raises(ValueError, match=r"on the device meta\. Got cpu"):
        make_generator(generator, "meta")


def test_one_seed_of_a_random_state():
    largest = np.iinfo(np.int32).max
    expected = np.random.RandomState(5).randint(largest)
    assert make_seed(np.random.RandomState(5)) == expected
    assert make_seed(np.int64(3)) == 3
    np.random.seed(1)  # noqa: NPY002 - the global state, which stays where it is
    assert make_seed(None) != make_seed(None)
    assert np.random.randint(1000) == np.random.RandomState(1).randint(1000)  # noqa: NPY002
    with pytest.raises(TypeError, match=r"random_state must be .* Got True"):
        make_seed(True)
