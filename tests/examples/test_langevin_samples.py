"""The Langevin example, short; and what its stored result says."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "langevin" / "langevin.json"


@pytest.fixture
def example(load_example):
    return load_example("plot_langevin_samples")


def test_chains_are_compared_with_the_formula(example, tmp_path, capsys):
    result = example.main(["--output", str(tmp_path)])
    assert "the formula holds: True" in capsys.readouterr().out
    for row in result["regression"]:
        assert row["formula"] == pytest.approx(1 / (1 - row["share"] / 2))
    assert json.loads((tmp_path / "langevin.json").read_text())["holds"]
    assert (tmp_path / "langevin.png").stat().st_size > 10_000


def test_the_stored_chains_follow_the_discrete_formula_and_not_the_posterior():
    """20,000 chains: within 4 standard errors of one, far from the other."""
    result = json.loads(RESULT.read_text())
    assert result["holds"]
    assert result["bias_is_seen"]
    for row in result["regression"]:
        off = row["ratio"] - 1 / (1 - row["share"] / 2)
        assert abs(off) < 4 * row["ratio_stderr"]
        if row["share"] >= 0.4:
            assert row["ratio"] - 1 > 10 * row["ratio_stderr"]
    assert result["network"]["n_points"] == 801
