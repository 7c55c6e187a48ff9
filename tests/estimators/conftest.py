"""The slow checks run when they are asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    if "slow" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="takes minutes; run it with -m slow")
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture
def global_state():
    """A function that gives the state of the global generators."""

    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002

    return state
