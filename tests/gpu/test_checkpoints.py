"""A fit on a GPU goes on from a checkpoint."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from flatmin import NoisyDiffusionClassifier
from flatmin._runs.checkpoint_files import CheckpointFolder
from flatmin.noise import SGD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Killed(BaseException):
    """What a kill is inside a test."""


@pytest.mark.parametrize(
    "params",
    [
        {"method": "gld_hessian", "n_components": 3},
        {"method": "gld_leading", "gradient_batch_size": 50, "batch_size": 5},
        {"method": SGD(sampling="epoch"), "optimizer": "adam"},
    ],
    ids=lambda params: str(params["method"]),
)
def test_an_interrupted_fit_goes_on(monkeypatch, tmp_path, params):
    X, y = load_iris(return_X_y=True)
    settings = {"module_params": {"hidden_layer_sizes": 8}, "device": "cuda"}
    settings |= {
        "warmup": {"max_iter": 12},
        "max_iter": 25,
        "record_every": 10,
        "lr": 0.01,
    }
    settings |= {"random_state": 0, "dtype": "float64", **params}
    whole = NoisyDiffusionClassifier(**settings).fit(X, y)
    kept = {"checkpoint_dir": {"path": tmp_path, "every": 4}}
    write = CheckpointFolder.write
    for n_writes in (2, 4):
        left = [n_writes]

        def counted(self, content, left=left):
            write(self, content)
            left[0] -= 1
            if not left[0]:
                raise Killed

        monkeypatch.setattr(CheckpointFolder, "write", counted)
        with pytest.raises(Killed):
            NoisyDiffusionClassifier(**settings, **kept).fit(X, y)
    monkeypatch.setattr(CheckpointFolder, "write", write)
    found = NoisyDiffusionClassifier(**settings, **kept).fit(X, y)
    assert found.n_iter_ == 25
    # Sums on a GPU differ in their last bits.
    np.testing.assert_allclose(found.params_, whole.params_, rtol=1e-6, atol=1e-9)
