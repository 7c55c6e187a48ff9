"""Methods × seeds from shared warm-ups, on all cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import product
from numbers import Integral
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from joblib import cpu_count, effective_n_jobs
from sklearn.utils import check_array

from flatmin._utils.arrays import to_numpy
from flatmin._utils.callables import check_callable
from flatmin._utils.checkpoint_files import check_checkpoint_every
from flatmin._utils.fingerprint import fingerprint
from flatmin._utils.messages import naming
from flatmin._utils.numbers import (
    check_count,
    check_flag,
    check_held_by,
    check_positive,
    is_count,
    is_number,
)
from flatmin._utils.paths import check_path
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import resolve_random_state, spawn_seeds
from flatmin.comparison._checkpoints import ComparisonFolder
from flatmin.comparison._methods import check_estimator, resolve_methods
from flatmin.comparison._plan import Plan, Source, check_metrics
from flatmin.comparison._provenance import describe, describe_settings, provenance
from flatmin.comparison._result import ComparisonResult
from flatmin.comparison._unit import (
    Outcome,
    Start,
    Unit,
    kept_unit,
    lost_start,
    lost_unit,
    run_unit,
    warm_up,
)
from flatmin.comparison._workers import work

__all__ = ["compare_dynamics"]

_PAUSE = 0.2  # seconds between two looks at what other calls are at


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
    methods : str, NoiseLaw, estimator, an iterable of them, or a mapping
        A mapping goes from labels to the same, or to dicts of settings of the
        estimator, such as ``{"lr": 0.1, "batch_size": 10}``; its label is the method
        unless they name one. Elsewhere labels are the names.
    X : array-like of shape (n_samples, n_features, ...) or callable
        Training data. A function of the seed returns ``(X, y)`` or
        ``(X, y, X_test, y_test)``: then the seed decides the data too. It is called in
        the workers, several times a seed.
    y : array-like of shape (n_samples,), default=None
        Targets; None with a function.
    estimator : NoisyDiffusionClassifier or NoisyDiffusionRegressor
        Everything else: network, warm-up, lr, iterations, device. With a GPU each
        worker has a context of its own on it.
    X_test, y_test : array-like, default=None
        Looked at only, as ``X_val`` and ``y_val`` of ``fit``: the columns
        ``valid_loss`` and ``valid_score`` are of these.
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
        end: "loky" processes unless told otherwise; "threading" works too.
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
        fits of the others on their way. The same call, also in another process and
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
    _check_quench(quench, quench_lr, quench_loss, quench_loss_iter)
    keep_params = check_flag("keep_params", keep_params)
    if on_unit is not None:
        check_callable("on_unit", on_unit, "result")
    n_threads = check_count("n_threads", n_threads)
    estimator._validate_params()
    if quench_lr is not None:
        check_held_by("quench_lr", float(quench_lr), resolve_dtype(estimator.dtype))
    if checkpoint_dir is not None:
        check_path("checkpoint_dir", checkpoint_dir)
    if isinstance(memory, str):
        check_path("memory", memory)
    memory = estimator.memory if memory is None else memory
    device = resolve_device(estimator.device)  # an error here, and not in each unit
    _check_threads(n_threads, n_jobs)
    estimators = resolve_methods(methods, estimator)
    resolve_random_state(random_state)
    seeds = _resolve_seeds(n_seeds, random_state)
    plan = Plan(
        Source(_resolve_data(X, y, X_test, y_test), estimator),
        check_metrics("metrics", metrics),
        check_metrics("end_metrics", end_metrics),
        int(quench),
        quench_lr,
        None if quench_loss is None else float(quench_loss),
        None if quench_loss_iter is None else int(quench_loss_iter),
        keep_params,
        n_threads,
        provenance(device),
    )
    protocol = _protocol(estimators, plan)
    folders = _folders(checkpoint_dir, checkpoint_every, plan, estimators)
    done: dict[tuple[str, int], Unit] = {}
    origin: list[dict[str, Any]] = []
    total = len(seeds) * (1 + len(estimators))
    before = torch.get_num_threads()
    try:
        with progress_bar(total, "comparison", verbose=verbose) as bar:
            for unit, place in _outcomes(
                estimators, seeds, plan, memory, folders, n_jobs, bar
            ):
                label, seed = unit.record["method"], unit.record["seed"]
                done[label, seed] = unit
                if place not in origin:
                    origin.append(place)
                if on_unit is not None:
                    own = {**protocol, "methods": {label: protocol["methods"][label]}}
                    on_unit(_collect([unit], own, [place], plan.source))
    finally:
        torch.set_num_threads(before)
    ordered = [done[label, seed] for label in estimators for seed in seeds]
    return _collect(ordered, protocol, origin, plan.source)


def _outcomes(
    estimators: Mapping[str, Any],
    seeds: list[int],
    plan: Plan,
    memory: Any,
    folders: ComparisonFolder,
    n_jobs: int | None,
    bar: Any,
) -> Iterator[Outcome]:
    """Yield units and their provenance: first those that an earlier call has kept."""
    kept, left = [], []
    for seed, label in product(seeds, estimators):
        found = kept_unit(plan, folders.unit(label, seed))
        if found is None:
            left.append((label, seed))
        else:
            kept.append(found)
    if left:
        folders.check()
    for found in kept:
        bar.update()
        yield found
    starts: dict[int, Start] = {}
    waiting = list(dict.fromkeys(seed for _, seed in left))
    bar.update(len(seeds) - len(waiting))
    # What another call is at comes last, and is taken from the folder when it is done,
    # or run here if that call is gone.
    while left:
        tasks: list[tuple[Any, ...]] = [
            (plan.source.estimator, seed, plan, memory, folders.warmup(seed))
            for seed in waiting
            if not folders.warmup(seed).in_use()
        ]
        for start in work(warm_up, tasks, n_jobs, _lost_start):
            if start is not None:
                starts[start.seed] = start
                waiting.remove(start.seed)
                bar.update()
        tasks = [
            (estimators[label], label, starts[seed], plan, folders.unit(label, seed))
            for label, seed in left
            if seed in starts and not folders.unit(label, seed).in_use()
        ]
        ended = False
        for outcome in work(run_unit, tasks, n_jobs, _lost_unit):
            if outcome is not None:
                ended = True
                left.remove((outcome[0].record["method"], outcome[0].record["seed"]))
                bar.update()
                yield outcome
        bar.set_postfix_str(f"{len(left)} in another call" if left else "")
        if left and not ended:
            time.sleep(_PAUSE)


def _lost_start(task: tuple[Any, ...], error: Exception) -> Start:
    _, seed, *_ = task
    return lost_start(seed, error)


def _lost_unit(task: tuple[Any, ...], error: Exception) -> Outcome:
    _, label, start, plan, _ = task
    return lost_unit(label, start, plan, error)


def _folders(
    path: str | os.PathLike[str] | None,
    every: int | None,
    plan: Plan,
    estimators: Mapping[str, Any],
) -> ComparisonFolder:
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
        common["data"] = _values(plan.source.data)
    return ComparisonFolder(path, every, common, estimator, estimators)


def _values(data: Any) -> Any:
    """Return data such that a data frame and its values are alike."""
    if callable(data):
        return data
    return [np.asarray(d) if hasattr(d, "__array__") else d for d in data]


def _collect(
    units: list[Unit],
    protocol: dict[str, Any],
    origin: list[dict[str, Any]],
    source: Source,
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


def _protocol(estimators: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the settings: the estimator's, and what each method has of its own."""
    common = describe_settings(plan.source.estimator)
    own = {}
    for label, unit in estimators.items():
        settings = describe_settings(unit)
        different = {k: v for k, v in settings.items() if v != common[k]}
        own[label] = {"method": settings["method"], **different}
    data = plan.source.data
    protocol = {
        "estimator": common,
        "methods": own,
        "data": describe(data) if callable(data) else "given",
        "metrics": describe(plan.metrics),
        "end_metrics": describe(plan.end_metrics),
        "quench": plan.quench,
        "quench_lr": describe(plan.quench_lr),
        "n_threads": plan.n_threads,
    }
    if not callable(data):
        with suppress(TypeError):  # of what cannot be described it is not known
            protocol["data_hash"] = joblib.hash(fingerprint(_values(data)))
    # Without it, results can be merged with those of versions that had no such quench.
    if plan.quench_loss is not None:
        protocol["quench_loss"] = plan.quench_loss
        protocol["quench_loss_iter"] = plan.quench_loss_iter
    return protocol


def _check_quench(
    quench: Any, quench_lr: Any, quench_loss: Any, quench_loss_iter: Any
) -> None:
    check_count("quench", quench, at_least=0)
    if quench_lr is not None:
        check_positive("quench_lr", quench_lr)
    if (quench_loss is None) != (quench_loss_iter is None):
        missing = "quench_loss" if quench_loss is None else "quench_loss_iter"
        raise ValueError(
            "quench_loss and quench_loss_iter, the iterations that a unit may take to "
            f"that loss, come together. Got {missing}=None."
        )
    if quench_loss is not None:
        if not is_number(quench_loss):
            raise ValueError(
                f"quench_loss must be a finite number. Got {quench_loss!r}."
            )
        check_count("quench_loss_iter", quench_loss_iter)


def _resolve_data(X: Any, y: Any, X_test: Any, y_test: Any) -> Any:
    if callable(X):
        if any(part is not None for part in (y, X_test, y_test)):
            raise ValueError(
                "A function of the seed returns all data: leave y, X_test and y_test "
                "at None, or pass arrays."
            )
        return X
    if y is None:
        raise ValueError("y must be given, unless X is a function of the seed.")
    if (X_test is None) != (y_test is None):
        missing = "X_test" if X_test is None else "y_test"
        raise ValueError(f"X_test and y_test come together. Got {missing}=None.")
    parts = (X, y) if X_test is None else (X, y, X_test, y_test)
    names = ("X", "y", "X_test", "y_test")
    return tuple(_read(name, part) for name, part in zip(names, parts, strict=False))


def _read(name: str, data: Any) -> Any:
    """Return data that an estimator can look into; here, and not in each unit."""
    array = to_numpy(name, data)
    with naming(name):
        plain = np.asarray(array)
        if name[0] == "X":
            check_array(array, allow_nd=True, dtype="numeric", input_name=name)
    if plain.ndim == 0 or not len(plain):
        raise ValueError(f"{name} must hold at least one example. Got {data!r}.")
    return data


def _resolve_seeds(n_seeds: Any, random_state: Any) -> list[int]:
    if isinstance(n_seeds, Integral):
        n_seeds = check_count("n_seeds", n_seeds)
        names = [str(i) for i in range(n_seeds)]
        return list(spawn_seeds(random_state, names).values())
    if not isinstance(n_seeds, Iterable):
        raise TypeError(f"n_seeds must be a number or the seeds. Got {n_seeds!r}.")
    with naming("n_seeds"):
        seeds = list(n_seeds)
    if not seeds or not all(is_count(seed, 0) for seed in seeds):
        raise ValueError(
            "Seeds must be integers of at least 0, and there must be one. "
            f"Got {seeds!r}."
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"Every seed may be there once. Got {seeds!r}.")
    return [int(seed) for seed in seeds]


def _check_threads(n_threads: int, n_jobs: int | None) -> None:
    workers = effective_n_jobs(n_jobs)  # type: ignore[arg-type]
    if n_threads > 1 and n_threads * workers > cpu_count():
        raise ValueError(
            f"n_threads must be at most the cores a worker has, "
            f"{max(1, cpu_count() // workers)} with {workers} workers on "
            f"{cpu_count()} cores. Got {n_threads}."
        )
