"""The monitored loop, short; and what its stored result says."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "monitor" / "edge_of_stability.json"


@pytest.fixture
def example(load_example):
    return load_example("plot_monitor_a_training")


def test_two_runs_are_watched(example, tmp_path, capsys):
    history = example.main(["--output", str(tmp_path)])
    assert "gradient descent" in capsys.readouterr().out
    starts = history[history["step"] == 0]
    assert starts["loss"].nunique() == 1  # both from one network
    stored = json.loads((tmp_path / "edge_of_stability.json").read_text())
    assert stored["history"]["loss"] == history["loss"].tolist()
    assert (tmp_path / "edge_of_stability.png").stat().st_size > 10_000


def test_gradient_descent_hovers_at_the_edge_and_sgd_stays_below():
    history = pd.DataFrame(json.loads(RESULT.read_text())["history"])
    late = history[history["step"] > 4000].groupby("run")["edge_of_stability"]
    assert len(late) == 2
    assert late.mean()["gradient descent"] == pytest.approx(1, abs=0.02)
    assert late.max()["SGD, m = 16"] < 0.8
    ends = history[history["step"] == 6000]["loss"]
    assert np.ptp(np.log(ends)) < np.log(1.5)  # at nearly one training loss
