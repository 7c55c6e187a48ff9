"""The warm-up as a pure function."""

import numpy as np
import pytest

from flatmin.dynamics import DivergenceError, Recorder, run_warmup

from ._problems import descent


def warm_up(n_iter=10, **params):
    run = descent(**params)
    recorder = Recorder(run.risk, lambda outputs: 0.5)
    return run_warmup(run, recorder, n_iter=n_iter, record_every=4, verbose=False)


def test_it_is_a_run_with_rows_before_each_block():
    result = warm_up()
    by_hand = descent()
    by_hand.run(10)
    np.testing.assert_array_equal(result.theta, by_hand.theta.numpy())
    assert [row["iteration"] for row in result.rows] == [0, 4, 8]
    assert {row["phase"] for row in result.rows} == {"warmup"}
    assert (result.n_iter, result.diverged) == (10, None)


def test_a_divergence_in_the_last_step_is_noticed():
    with pytest.raises(DivergenceError) as error:
        warm_up(lr=1e5, n_iter=1000)
    last = int(str(error.value).split("iteration ")[1].split()[0])
    with pytest.raises(DivergenceError, match=f"iteration {last} "):
        warm_up(lr=1e5, n_iter=last)


def test_a_stop_is_part_of_the_result():
    result = warm_up(lr=1e5, n_iter=1000, on_divergence="stop")
    assert result.diverged.startswith("The loss became")
    by_hand = descent(lr=1e5)
    by_hand.run(result.n_iter)
    np.testing.assert_array_equal(result.theta, by_hand.theta.numpy())
