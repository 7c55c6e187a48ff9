"""Some flips of each kind of file; thousands are benchmarks/flip_bits.py's."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "flip_bits.py"
if not PATH.exists():
    pytest.skip("a release has no benchmarks", allow_module_level=True)

spec = importlib.util.spec_from_file_location("flip_bits", PATH)
flip_bits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(flip_bits)


@pytest.mark.parametrize("name", flip_bits.KINDS)
def test_no_flip_is_wrong(name):
    n = 3 if name == "units of a comparison" else 10
    found = flip_bits.run_kind(name, n, seed=1)
    assert found["bad"] == []
    assert sum(found["counts"].values()) == n
