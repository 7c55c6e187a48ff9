"""The warm-up as a pure function."""

import joblib
import numpy as np
import pytest

from flatmin.dynamics import DivergenceError, Recorder, WarmupResult, run_warmup

from ._problems import descent


def warm_up(built, key=None, memory=None, n_iter=10, **params):
    def build():
        run = descent(**params)
        built.append(run)
        return run, Recorder(run.risk, lambda outputs: 0.5)

    return run_warmup(
        build,
        key,
        n_iter=n_iter,
        record_every=4,
        memory=memory or joblib.Memory(None),
        verbose=False,
    )


def test_it_is_a_run_with_rows_before_each_block():
    result = warm_up([])
    by_hand = descent()
    by_hand.run(10)
    np.testing.assert_array_equal(result.theta, by_hand.theta.numpy())
    assert [row["iteration"] for row in result.rows] == [0, 4, 8]
    assert {row["phase"] for row in result.rows} == {"warmup"}
    assert (result.n_iter, result.diverged) == (10, None)


def test_memory_needs_a_key(tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    built = []
    results = [warm_up(built, key, memory) for key in ({"a": 1}, {"a": 1}, {"a": 2})]
    assert len(built) == 2
    warm_up(built, None, memory)
    warm_up(built, None, memory)
    assert len(built) == 4
    assert isinstance(results[1], WarmupResult)
    np.testing.assert_array_equal(results[0].theta, results[1].theta)
    assert results[0].rows == results[1].rows


def test_a_divergence_in_the_last_step_is_noticed():
    with pytest.raises(DivergenceError) as error:
        warm_up([], lr=1e5, n_iter=1000)
    last = int(str(error.value).split("iteration ")[1].split()[0])
    with pytest.raises(DivergenceError, match=f"iteration {last} "):
        warm_up([], lr=1e5, n_iter=last)


def test_a_stop_is_part_of_the_result():
    result = warm_up([], lr=1e5, n_iter=1000, on_divergence="stop")
    assert result.diverged.startswith("The loss became")
    by_hand = descent(lr=1e5)
    by_hand.run(result.n_iter)
    np.testing.assert_array_equal(result.theta, by_hand.theta.numpy())
