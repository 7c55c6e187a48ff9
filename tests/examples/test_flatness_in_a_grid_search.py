"""The example on fewer digits and iterations: its claims are asserted in it."""

import importlib.util
from pathlib import Path

import joblib
import pytest

PATH = Path(__file__).parents[2] / "examples" / "flatness_in_a_grid_search.py"


@pytest.mark.slow
def test_the_table_holds_both_scores(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("flatness_in_a_grid_search", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "N", 300)
    monkeypatch.setattr(module, "WARMUP", 500)
    monkeypatch.setattr(module, "N_ITER", 50)
    # Workers do not know a module that was loaded from a path.
    with joblib.parallel_config("sequential"):
        module.main()
    printed = capsys.readouterr().out
    for name in ("accuracy", "flatness", "train", "test", "without memory"):
        assert name in printed
    table = printed.split("the most accurate")[0]
    for method in ("gd", "sgd", "gld_diagonal", "gld_const"):
        assert method in table
