"""What the tests of this floor share."""

import numpy as np
import pytest
import torch


@pytest.fixture
def global_state():
    """A function that gives the state of the global generators."""

    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002

    return state
