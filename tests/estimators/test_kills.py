"""A fit that is killed at any moment ends where it would have ended."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from flatmin.noise import METHODS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

SCRIPT = Path(__file__).parent / "_killed.py"


def kill(names, n_kills, seed):
    command = [sys.executable, str(SCRIPT), json.dumps([names, n_kills, seed])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_killed_fit_goes_on_bit_for_bit():
    seed = random.randrange(2**31)
    for name, found in kill(["sgd", "gld_hessian+batches"], 2, seed).items():
        assert found["kills"] >= 2
        assert found["ends"] >= 1
        assert found["wrong"] == 0, (name, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*METHODS, "sgd+epoch", "gld_full+adam", "gld_random_subspace+batches"]
)
def test_twenty_kills(name):
    seed = random.randrange(2**31)
    found = kill([name], 20, seed)[name]
    assert found["kills"] >= 20
    assert found["wrong"] == 0, seed
