"""The example as it is: its claims are asserted in it."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "analyze_any_network.py"


@pytest.mark.slow
def test_three_networks(capsys):
    spec = importlib.util.spec_from_file_location("analyze_any_network", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split()[1:3] for row in table] == [
        ["flatmin", "estimator"],
        ["skorch", "net"],
        ["PyTorch", "module"],
    ]
