"""Units on a Dask cluster give the table of one process, whatever happens there."""

import json
import os
import signal
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from flatmin import compare_dynamics
from flatmin.comparison import _cluster
from flatmin.comparison._checkpoints import UnitFolder

from ._problems import classifier, digits, norm
from .test_checkpoints import assert_alike

distributed = pytest.importorskip("distributed", reason="needs the extra 'distributed'")

X, y, X_test, y_test = digits()


@pytest.fixture(scope="module")
def processes():
    """A client of two worker processes of one thread, of which one death is enough."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        cluster.scheduler.allowed_failures = 1
        yield client


@pytest.fixture
def thread():
    """A client of one worker, a thread of this process."""
    with distributed.Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as client:
        yield client


def compare(methods=("gd", "gld_hessian"), n_seeds=(3, 1), **settings):
    given = {"estimator": classifier(), "quench": 10, "end_metrics": {"end": norm}}
    return compare_dynamics(methods, X, y, n_seeds=n_seeds, **given | settings)


def on_cluster(*arguments, **settings):
    with joblib.parallel_config(backend="dask"):
        return compare(*arguments, **settings)


# ---------------------------------------------------------------- two processes
def test_a_comparison_is_that_of_one_process(processes):
    whole = compare(keep_params=True)
    seen = []
    found = on_cluster(keep_params=True, on_unit=seen.append, verbose=True)
    assert_alike(found, whole)
    assert len(seen) == 4
    assert found.provenance == whole.provenance
    with joblib.parallel_config(backend="dask"):
        measured = found.measure({"norm": norm})
    assert_frame_equal(measured, whole.measure({"norm": norm}), check_exact=True)


def test_a_grid_search_is_that_of_one_process(processes):
    grid = GridSearchCV(
        classifier(random_state=0),
        {"method": ["gd", "gld_hessian"], "noise_scale": [1.0, 2.0]},
        cv=2,
        return_train_score=True,
    )
    alone = grid.fit(X, y).cv_results_
    with joblib.parallel_config(backend="dask"):
        found = grid.fit(X, y).cv_results_
    scores = [name for name in alone if name.endswith("_score")]
    assert len(scores) == 9
    for name in scores:
        np.testing.assert_array_equal(found[name], alone[name])


class Data:
    """Data of a seed that take 4 MB to pickle."""

    def __init__(self):
        self.ballast = bytes(4_000_000)

    def __call__(self, seed):
        return X, y


def sent_to_others(dask_worker):
    return dask_worker.transfer_outgoing_bytes_total


def test_data_are_sent_once(processes, monkeypatch):
    """By the caller to the cluster, and by one worker to the other; not for a unit."""
    pickled = []

    def count(value):
        found = dumps(value)
        pickled.append(len(found))
        return found

    dumps = _cluster.dumps
    monkeypatch.setattr(_cluster, "dumps", count)
    before = sum(processes.run(sent_to_others).values())
    with joblib.parallel_config(backend="dask"):
        found = compare_dynamics(
            ["gd", "sgd", "gld_full"], Data(), estimator=classifier(), n_seeds=2
        )
    assert len(found.failures) == 0
    # For all warm-ups and for all units, beside two and six tasks.
    assert len(pickled) == 10
    assert sum(size > 4e6 for size in pickled) == 2
    assert sum(size for size in pickled if size < 4e6) < 4e5
    assert sum(processes.run(sent_to_others).values()) - before < 2 * 4.1e6


class Killer(Callback):
    """A unit that wants more memory than there is, at its tenth iteration.

    Notes the iterations that it sees.
    """

    def __init__(self, folder, always):
        self.folder, self.always = folder, always

    def on_epoch_end(self, net, **kwargs):
        n_seen = len(net.history)
        with (self.folder / "seen").open("a") as file:
            file.write(json.dumps([os.getpid(), n_seen]) + "\n")
        mark = self.folder / "killed"
        if n_seen == 10 and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


needs_kill = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")


@needs_kill
def test_a_killed_unit_goes_on_elsewhere(processes, tmp_path):
    methods = {"gd": {}, "killer": {"method": "sgd", "callbacks": None}}
    estimator = classifier(record_every=1)
    whole = compare(methods, [3], estimator=estimator)
    methods["killer"]["callbacks"] = [Killer(tmp_path, always=False)]
    found = on_cluster(
        methods,
        [3],
        estimator=estimator,
        checkpoint_dir=tmp_path / "folder",
        checkpoint_every=4,
    )
    assert_frame_equal(found.table, whole.table, check_exact=True)
    assert len(found.failures) == 0
    seen = [
        json.loads(line) for line in (tmp_path / "seen").read_text().split("\n")[:-1]
    ]
    first = [n for pid, n in seen if pid == seen[0][0]]
    second = [n for pid, n in seen if pid == seen[-1][0]]
    assert first == list(range(1, 11))
    # From the checkpoint at the eighth iteration, not from the start.
    assert second == list(range(9, 21))


@needs_kill
def test_a_search_goes_on_where_a_worker_was_killed(processes, tmp_path):
    def search(callbacks):
        grid = GridSearchCV(
            classifier(random_state=0, record_every=1, callbacks=callbacks),
            {"method": ["gd", "gld_hessian"]},
            cv=2,
        )
        return grid.fit(X, y).cv_results_

    alone = search(None)
    with joblib.parallel_config(backend="dask"):
        found = search([Killer(tmp_path, always=False)])
    assert (tmp_path / "killed").exists()
    for fold in ("split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(found[fold], alone[fold])


@needs_kill
@pytest.mark.slow
def test_a_unit_that_always_kills_has_failed_alone(processes, tmp_path):
    always = {"method": "gd", "callbacks": [Killer(tmp_path, always=True)]}
    estimator = classifier(record_every=1)
    found = on_cluster({"killer": always, "gd": {}}, [3], estimator=estimator)
    assert found.failures["method"].tolist() == ["killer"]
    assert found.failures["error"].tolist() == ["KilledWorker"]
    rest = found.table[found.table["method"] == "gd"].reset_index(drop=True)
    alone = compare(["gd"], [3], estimator=estimator)
    assert_frame_equal(rest[alone.table.columns], alone.table, check_exact=True)


def threads(risk, theta):
    return torch.get_num_threads()


def test_all_workers_have_the_threads_that_were_asked_for(processes):
    found = on_cluster(["gd"], metrics={"threads": threads})
    assert found.table["threads"].dropna().unique().tolist() == [1]
    assert found.protocol["n_threads"] == 1
    with pytest.raises(ValueError, match=r"a worker of the cluster has .* Got 1000"):
        on_cluster(["gd"], n_threads=1000)


# ------------------------------------------------------------------ one thread
class RootedError(ValueError):
    """Cannot be made again by its arguments, and so not be unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


class Raiser(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise RootedError("no", 2)


def rooted(risk, theta):
    raise RootedError("no", 2)


def test_a_unit_that_raises_has_failed_alone(thread):
    methods = {"gd": {}, "raiser": {"method": "gd", "callbacks": [Raiser()]}}
    found = on_cluster(methods)
    assert found.failures[["method", "seed"]].to_numpy().tolist() == [
        ["raiser", 3],
        ["raiser", 1],
    ]
    assert found.failures["error"].unique().tolist() == ["RootedError"]
    rest = found.table[found.table["method"] == "gd"].reset_index(drop=True)
    assert_frame_equal(rest, compare(["gd"]).table, check_exact=True)


def test_what_no_method_could_use_is_raised(thread):
    with pytest.raises(ValueError, match=r"^RootedError: no$"):
        on_cluster(["gd"], metrics={"rooted": rooted})
    assert len(on_cluster(["gd"]).failures) == 0  # nothing is left over


def test_a_comparison_may_be_a_task_of_the_cluster(thread):
    """It lets go of the thread that its units need."""
    found = thread.submit(on_cluster, ["gd"]).result(timeout=100)
    assert_alike(found, compare(["gd"]))


def test_a_worker_must_see_the_folder(tmp_path):
    folder = UnitFolder(tmp_path / "elsewhere" / "gd-3", None, {})
    with pytest.raises(ValueError, match=r"all workers share. Got .*elsewhere, which"):
        folder.held().__enter__()
    assert not (tmp_path / "elsewhere").exists()


def test_folders_are_absolute(thread, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_cluster(["gd"], checkpoint_dir="folder", memory="memory")
    assert {path.name for path in Path(tmp_path).iterdir()} == {"folder", "memory"}
    assert _cluster.is_cluster() is False
