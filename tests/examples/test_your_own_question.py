"""The tutorial on one's own data and network, on few iterations."""

import importlib.util
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[2] / "examples" / "your_own_question.py"


def load():
    spec = importlib.util.spec_from_file_location("your_own_question", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_ends_in_a_table(capsys):
    table = load().main(max_iter=20, n_seeds=2)
    assert "max_eigenvalue" in capsys.readouterr().out
    table = table.reset_index()
    of_noise = (table["column"] == "max_eigenvalue") & (table["phase"] == "noise")
    noise = table[of_noise].set_index("method")
    assert np.isfinite(noise["mean"]).all()
    assert (noise["n"].drop("gd") == 2).all()


def test_a_fifth_of_the_training_labels_are_wrong():
    module = load()
    X, y, X_test, y_test = module.data(0)
    assert len(X) == len(y) == 426
    assert len(X_test) == len(y_test) == 143
    # Those of the test are as scikit-learn ships them: six in ten are benign.
    assert abs(y_test.mean() - 0.627) < 0.01
    expected = 0.627 * 0.8 + 0.373 * 0.2
    assert abs(y.mean() - expected) < 0.1
