"""Settings as what JSON can hold."""

import functools
import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from flatmin import NoisyDiffusionClassifier
from flatmin.comparison._protocol import describe, describe_settings
from flatmin.comparison._provenance import provenance
from flatmin.modules import LeNet
from flatmin.noise import GLDConst

from ._problems import norm


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.1),
        (True, True),
        (None, None),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (float("inf"), "inf"),
        ((1, [2.0]), [1, [2.0]]),
        ({"hidden_layer_sizes": (8, 4)}, {"hidden_layer_sizes": [8, 4]}),
        (LeNet, "flatmin.modules._lenet.LeNet"),
        (GLDConst(sigma=0.1), "GLDConst(sigma=0.1)"),
        (np.ones(2), "array([1., 1.])"),
    ],
)
def test_settings(value, expected):
    assert describe(value) == expected


def test_stored_results_have_the_settings_of_today():
    """So that they can be merged with new ones, and measured again."""
    folder = Path(__file__).parents[2] / "benchmarks/results"
    if not folder.is_dir():
        pytest.skip("a source distribution has no results")
    path = folder / "comparison_on_fashion_mnist/full/gd_seed0.json"
    stored = json.loads(path.read_text())["protocol"]["estimator"]
    assert describe_settings(NoisyDiffusionClassifier()).keys() == stored.keys()


@pytest.mark.parametrize("changed", [{"l2": 0.1}, {"positions": "example"}])
def test_a_later_setting_is_there_once_it_says_something(changed):
    settings = describe_settings(NoisyDiffusionClassifier(**changed))
    assert settings | changed == settings


def test_no_address_is_written():
    described = describe(functools.partial(norm, scale=2))
    assert "norm" in described
    assert "0x" not in described


def test_versions_and_machine_are_json():
    found = provenance(torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["device"] == "cpu"


class Shy:
    def __repr__(self):
        raise ZeroDivisionError


def test_what_cannot_be_shown_is_told_by_its_class():
    assert describe({"sink": [Shy()]}) == {"sink": ["<Shy>"]}


def test_no_kernel_and_no_host():
    text = json.dumps(provenance(torch.device("cpu"))["machine"])
    assert platform.system() in text
    assert platform.machine() in text
    for told in (platform.node(), platform.release(), platform.version()):
        assert not told or told not in text
