"""Every drawing: without a window, closed afterwards, and no global setting changed."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from flatmin import NoiseCovarianceAnalyzer

from ._problems import line


@pytest.fixture(autouse=True)
def drawing():
    mpl.use("Agg")
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="session")
def of_a_subset():
    """Return an alignment whose eigenpairs are not known."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(900, 2))
    options = {"loss": "squared_error", "n_components": 2, "random_state": 0}
    analyzer = NoiseCovarianceAnalyzer(line(), subset=450, **options)
    return analyzer.fit(inputs, rng.normal(size=900)).alignment()
