"""The tutorial on one's own data and network, on few iterations."""

import numpy as np


def test_the_comparison_ends_in_a_table(load_example, capsys):
    table = load_example("plot_your_own_question").main(max_iter=20, n_seeds=2)
    assert "max_eigenvalue" in capsys.readouterr().out
    table = table.reset_index()
    of_noise = (table["column"] == "max_eigenvalue") & (table["phase"] == "noise")
    noise = table[of_noise].set_index("method")
    assert np.isfinite(noise["mean"]).all()
    assert (noise["n"].drop("gd") == 2).all()


def test_a_fifth_of_the_training_labels_are_wrong(load_example):
    module = load_example("plot_your_own_question")
    X, y, X_test, y_test = module.data(0)
    assert len(X) == len(y) == 426
    assert len(X_test) == len(y_test) == 143
    # Those of the test are as scikit-learn ships them: six in ten are benign.
    assert abs(y_test.mean() - 0.627) < 0.01
    expected = 0.627 * 0.8 + 0.373 * 0.2
    assert abs(y.mean() - expected) < 0.1
