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


@pytest.fixture(scope="module")
def check():
    """A function that kills the fits of a case, and looks at their ends."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as killer:

        def ask(name, n_kills):
            seed = random.randrange(2**31)
            print(json.dumps([name, n_kills, seed]), file=killer.stdin, flush=True)
            found = json.loads(killer.stdout.readline())
            assert "error" not in found, found["error"]
            assert found["kills"] >= n_kills
            assert found["ends"] >= 1
            assert found["wrong"] == 0, seed

        yield ask


@pytest.mark.parametrize("name", ["sgd", "gld_hessian+batches"])
def test_a_killed_fit_goes_on_bit_for_bit(check, name):
    check(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*METHODS, "sgd+epoch", "gld_full+adam", "gld_random_subspace+batches"]
)
def test_twenty_kills(check, name):
    check(name, 20)
