"""The example on fewer digits and iterations: its claims are asserted in it."""

import joblib
import pytest


@pytest.mark.slow
def test_the_table_holds_both_scores(load_example, monkeypatch, capsys):
    module = load_example("plot_flatness_in_a_grid_search")
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
