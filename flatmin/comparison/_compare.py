"""Methods × seeds from shared warm-ups, on all cores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from flatmin._runs.checkpoint_files import check_checkpoint_every
from flatmin._utils.callables import check_callable
from flatmin._utils.numbers import check_count, check_flag
from flatmin._utils.paths import check_path
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin._utils.progress import progress_bar
from flatmin._utils.random_state import resolve_random_state
from flatmin.comparison._checkpoints import ComparisonFolder
from flatmin.comparison._cluster import is_cluster
from flatmin.comparison._inputs import (
    check_backend,
    check_pickles,
    check_threads,
    read_quench,
    resolve_data,
    resolve_seeds,
)
from flatmin.comparison._machines import describe_mixture
from flatmin.comparison._methods import check_estimator, resolve_methods
from flatmin.comparison._plan import Plan, RiskSource, read_metrics
from flatmin.comparison._protocol import (
    array_values,
    make_protocol,
    protocol_of_one,
)
from flatmin.comparison._provenance import origin, provenance
from flatmin.comparison._result import ComparisonResult
from flatmin.comparison._schedule import run_units
from flatmin.comparison._tasks import Unit

__all__ = ["compare_dynamics"]


def compare_dynamics(
    methods: Any,
    X: Any,
    y: Any = None,
    *,
    estimator: Any,
    X_test: Any = None,
    y_test: Any = None,
    n_seeds: int | Iterable[int] = 5,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    end_metrics: Mapping[str, Callable[..., Any]] | None = None,
    quench: int = 0,
    quench_lr: float | None = None,
    quench_loss: float | None = None,
    quench_loss_iter: int | None = None,
    keep_params: bool = False,
    n_jobs: int | None = None,
    n_threads: int = 1,
    memory: Any = None,
    on_unit: Callable[[ComparisonResult], Any] | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: bool | int = False,
) -> ComparisonResult:
    """Run methods × seeds from shared warm-ups.

    A seed decides the initialisation, the warm-up and the draws of the noise, and its
    warm-up is run once, for all methods. So methods differ in their noise alone, and
    their differences are paired by seed. A unit, one method with one seed, is what
    ``clone(estimator).set_params(method=..., random_state=seed).fit(X, y)`` gives.

    With ``quench``, each unit goes on with gradient descent from where it ended: the
    plain step on all examples, without the method's optimizer and callbacks. Noise
    holds the loss up, and the curvature of the cross-entropy vanishes with the loss:
    what the noise has reached is seen when it is gone. Flat basins converge more
    slowly, and what a number of steps has left of the loss may pass for curvature. So
    with ``quench_loss`` each unit also goes, from the same point, to one training loss.

    Parameters
    ----------
    methods : str, NoiseLaw, its class, estimator, an iterable of them, or a mapping
        A mapping goes from labels to the same, or to dicts of settings of the
        estimator, such as ``{"lr": 0.1, "batch_size": 10}``; its label is the method
        unless they name one. Elsewhere labels are the names.
    X : array-like, mapping, tuple, data set or callable
        Training data, as ``fit`` of the estimator takes them. A
        ``torch.utils.data.Dataset`` or ``DataLoader`` is pickled for several processes,
        and one pass before the first unit tells them what they must read. A function of
        the seed returns ``(X, y)`` or ``(X, y, X_test, y_test)``, with None as targets
        of a data set: then the seed decides the data too. It is called in the workers,
        several times a seed.
    y : array-like of shape (n_samples,), default=None
        Targets; None with a data set, a function, where the estimator's ``target``
        names them, or where the ``ModuleLoss`` of a regressor needs none.
    estimator : NoisyDiffusionClassifier or NoisyDiffusionRegressor
        Everything else: network, warm-up, lr, iterations, device. With a GPU each
        worker has a context of its own on it.
    X_test, y_test : array-like, or a data set and None, default=None
        Looked at only: the columns ``test_loss`` and ``test_score`` are of these. As
        with y, a loss may need no ``y_test``. Callbacks see them as ``valid_loss`` and
        ``valid_score``.
    n_seeds : int or iterable of int, default=5
        How many seeds to draw from ``random_state``, or the seeds themselves.
    metrics : dict of str to callable, default=None
        ``metric(risk, theta)`` returns a number; in each row, besides the estimator's.
    end_metrics : dict of str to callable, default=None
        The same, measured only where the noise begins, and where it and the quench end.
        A result with a ``stderr`` gets a column for that too.
    quench : int, default=0
        Iterations of gradient descent after the noise.
    quench_lr : float, default=None
        Their η, and that of the quench to a loss; None is the lr of the method.
    quench_loss : float, default=None
        A training loss. Gradient descent goes from where the noise ended to the first
        iterate with L(θ) ≤ quench_loss, the phase "quench_loss". A unit that does not
        reach it, or whose noise ended there already, has another loss than the rest:
        it says so in ``units`` and has no end of this phase.
    quench_loss_iter : int, default=None
        The iterations that a unit may take to that loss; needed with it.
    keep_params : bool, default=False
        Keep θ where the phases ended, for ``params`` and ``measure`` of the result.
    n_jobs : int, default=None
        Units at a time, through joblib, whose ``parallel_config`` chooses the back
        end: "loky" processes unless told otherwise; "threading" works too, and
        "multiprocessing" does not, since it hands over no unit before the last. With
        "dask" a cluster runs as many units as its workers have threads, whatever is
        given here; the data go there once, and a unit whose worker dies goes on
        elsewhere.
    n_threads : int, default=1
        Of PyTorch in each worker. Sums depend, in the last bits, on the number of
        threads and on nothing else here: not on ``n_jobs``, the back end or the order.
    memory : None, str or joblib.Memory, default=None
        Keeps warm-ups for further calls; None is the estimator's own ``memory``.
    on_unit : callable, default=None
        Called with a :class:`ComparisonResult` of one unit whenever one has ended, in
        the calling process; to keep what is done should the rest be lost.
    checkpoint_dir : path-like, default=None
        A folder in which warm-ups and units are kept when they have ended, and the
        fits of the others on their way; see also :func:`merge_checkpoints`. The same
        call, also in another process and
        after a kill, takes from it what is there, and comes to the same table. Other
        methods, seeds and ``n_jobs`` may be asked for; with other settings, data or
        code, of metrics too, a unit is refused. Several calls, such as the jobs of a
        cluster, may share a folder at the same time: each unit is run by one of them,
        what another call is at comes last, and the call waits for it, or runs it if
        that call is gone. Units that failed, but by diverging, are run again, and
        with ``keep_params`` those that were run without. See ``checkpoint_dir`` of the
        estimator for what a fit that goes on cannot bring back.
    checkpoint_every : int, default=None
        Iterations between two checkpoints of a fit; None is after every block.
    random_state : int, RandomState instance or None, default=None
        Where seeds are drawn from. The first seeds are the same if there are more.
    verbose : bool or int, default=False
        Show a progress bar over warm-ups and units.

    Warns
    -----
    UserWarning
        If units of one seed, some of them from the folder, were run on several kinds of
        machine: their differences are paired no longer.

    Returns
    -------
    ComparisonResult
        Whatever a unit raised, or that it diverged, stands in ``failures``. The table
        has its rows until it diverged or, if it raised, those of the fits that had
        ended: a fit that raises returns nothing, and the same call runs it again. So it
        is with a worker process that is killed, as where memory runs out: its unit is
        run again, in the end by itself, and has failed if its worker dies there.

    Raises
    ------
    TypeError
        If an argument is not of the right kind.
    ValueError
        If an argument cannot work, or the data that all methods need; before the first
        unit.
    OSError
        If ``checkpoint_dir`` cannot be written, or its file system has no locks, and
        something is left to run.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier, compare_dynamics
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(lr=0.1, max_iter=20, warmup={"max_iter": 50})
    >>> found = compare_dynamics(
    ...     ["gd", "sgd"], X, y, estimator=clf, n_seeds=3, quench=10, random_state=0
    ... )
    >>> found.table.groupby("phase")["iteration"].agg(["min", "max"]).T
    phase  noise  quench  warmup
    min        0      20     -50
    max       20      30     -50
    >>> found.summary("gd", columns=["loss"])["n"].tolist()
    [3, 3, 3, 3]
    """
    check_estimator(estimator)
    estimator._validate_params()
    quenches = read_quench(
        quench=quench,
        quench_lr=quench_lr,
        quench_loss=quench_loss,
        quench_loss_iter=quench_loss_iter,
        dtype=resolve_dtype(estimator.dtype),
    )
    if on_unit is not None:
        check_callable("on_unit", on_unit, "result")
    memory = _memory(memory, estimator)
    n_threads = check_count("n_threads", n_threads)
    check_backend()
    check_threads(n_threads, n_jobs)
    estimators = resolve_methods(methods, estimator)
    resolve_random_state(random_state)
    seeds = resolve_seeds(n_seeds, random_state)
    read_metrics("The metrics of the estimator", estimator.metrics)
    data = resolve_data(X, y, X_test, y_test, estimator=estimator)
    plan = Plan(
        RiskSource(data, estimator),
        metrics=read_metrics("metrics", metrics),
        end_metrics=read_metrics("end_metrics", end_metrics),
        **quenches,
        keep_params=check_flag("keep_params", keep_params),
        n_threads=n_threads,
        # An error here, and not in each unit. A cluster may have devices of its own.
        provenance=origin()
        if is_cluster()
        else provenance(resolve_device(estimator.device)),
    )
    check_pickles(plan.source.data, n_jobs)
    folders = _folders(checkpoint_dir, checkpoint_every, plan, estimators)
    options = {"memory": memory, "folders": folders, "n_jobs": n_jobs}
    return _run(estimators, seeds, plan, on_unit, verbose=verbose, **options)


def _run(
    estimators: Mapping[str, Any],
    seeds: list[int],
    plan: Plan,
    on_unit: Callable[[ComparisonResult], Any] | None,
    *,
    verbose: bool | int,
    **options: Any,
) -> ComparisonResult:
    """Run all units, and hand each over as it ends."""
    protocol = make_protocol(estimators, plan)
    done: dict[tuple[str, int], Unit] = {}
    origin: list[dict[str, Any]] = []
    machines: list[tuple[int, dict[str, Any]]] = []
    total = len(seeds) * (1 + len(estimators))
    before = torch.get_num_threads()
    try:
        with progress_bar(total, "comparison", verbose=verbose) as bar:
            for unit, place in run_units(estimators, seeds, plan, bar=bar, **options):
                label, seed = unit.record["method"], unit.record["seed"]
                done[label, seed] = unit
                machines.append((seed, place))
                if place not in origin:
                    origin.append(place)
                if on_unit is not None:
                    own = protocol_of_one(protocol, label)
                    on_unit(_collect([unit], own, [place], plan.source))
    finally:
        torch.set_num_threads(before)
    mixed = describe_mixture(machines)
    if mixed is not None:
        warnings.warn(f"{mixed}: its methods are not paired.", stacklevel=3)
    ordered = [done[label, seed] for label in estimators for seed in seeds]
    return _collect(ordered, protocol, origin, plan.source)


def _memory(memory: Any, estimator: Any) -> Any:
    if isinstance(memory, str):
        check_path("memory", memory)
    found = estimator.memory if memory is None else memory
    # A worker may be elsewhere.
    return os.path.abspath(found) if isinstance(found, str) else found


def _folders(
    path: str | os.PathLike[str] | None,
    every: int | None,
    plan: Plan,
    estimators: Mapping[str, Any],
) -> ComparisonFolder:
    if path is not None:
        check_path("checkpoint_dir", path)
    estimator = plan.source.estimator
    if estimator.checkpoint_dir is not None:
        raise ValueError(
            "A comparison has one folder for all its fits: pass checkpoint_dir to "
            f"compare_dynamics. Got an estimator with {estimator.checkpoint_dir!r}."
        )
    if every is not None:
        every = check_count("checkpoint_every", every)
    check_checkpoint_every(path, every)
    common = plan.identity()
    if path is not None:
        common["data"] = array_values(plan.source.data)
    return ComparisonFolder(
        path,
        every=every,
        protocol=common,
        estimator=estimator,
        estimators=estimators,
    )


def _collect(
    units: list[Unit],
    protocol: dict[str, Any],
    origin: list[dict[str, Any]],
    source: RiskSource,
) -> ComparisonResult:
    # An empty table, of a warm-up that raised, would change the types of columns.
    tables = [unit.rows for unit in units if len(unit.rows)] or [units[0].rows]
    return ComparisonResult(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame([unit.record for unit in units]),
        protocol,
        origin,
        {
            (unit.record["method"], unit.record["seed"], phase): theta
            for unit in units
            for phase, theta in unit.params.items()
        },
        source,
    )
