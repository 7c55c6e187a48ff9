"""The kinds of network: both columns of the table are of the same numbers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kinds.py"

pytestmark = [
    pytest.mark.skipif(not SCRIPT.exists(), reason="a release has no benchmarks"),
    # PyTorch's own: when forward mode first loads, and of vmap by hand.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


@pytest.fixture(scope="module")
def kinds():
    spec = importlib.util.spec_from_file_location("kinds", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "row", ["digits", "table", "decoder of 4 layers", "residual network", "LSTM"]
)
def test_flatmin_and_the_code_by_hand_agree(kinds, row):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, X, y = kinds.ROWS[row](quick=True)
        ours, hand = kinds.ByFlatmin(module, X, y), kinds.ByHand(module, X, y)
    hand.v = ours.v
    expected = hand.product()
    assert float((ours.product() - expected).norm() / expected.norm()) < 1e-4
    torch.testing.assert_close(
        ours.squares().float(), hand.squares(), rtol=1e-4, atol=0
    )


def test_a_row_is_measured_in_a_process_of_its_own():
    command = [sys.executable, str(SCRIPT), "--one", "table", "flatmin", "product"]
    done = subprocess.run(
        [*command, "--quick"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert set(found["in_b"]) == {"product, first", "product, later"}
    assert all(t > 0 for pair in found["in_b"].values() for t in pair)
    assert found["b_seconds"][0] > 0
