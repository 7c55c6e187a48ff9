"""Estimators, analyzers and the scorer: two processes against one."""

import json
import pickle
import sys

import numpy as np
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from torch.utils.data import Subset, TensorDataset

from flatmin import (
    CurvatureAnalyzer,
    FlatnessMonitor,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    NoisyDiffusionRegressor,
    SharpnessScorer,
)
from flatmin._runs.checkpoint_files import CheckpointFolder
from flatmin.measures import SHARPNESS_MEASURES

from ._failures import tell
from ._join import folder, join, say
from ._quantities import data, net

X, y = (part.numpy() for part in data(41))


def classifier(**settings):
    common = {"max_iter": 6, "record_every": 3, "dtype": "float64", "random_state": 0}
    return NoisyDiffusionClassifier(net(), **(common | settings))


def numbers(model):
    """Return what a fit has found, as one array."""
    history = model.history_.select_dtypes("number").fillna(-1.0)
    return np.concatenate([model.params_, history.to_numpy().ravel()])


def of_estimators():
    found = {}
    cases = {
        "gld_full": {"method": "gld_full"},
        "sgd": {"method": "sgd", "batch_size": 4, "l2": 0.1},
        "a warm-up": {"method": "gld_hessian", "warmup": {"max_iter": 3}},
        "batches": {"gradient_batch_size": 10, "method": "gld_diagonal"},
        "early stopping": {"training": {"early_stopping": True}},
        "class weights": {"class_weight": "balanced", "optimizer": "adam"},
        "metrics": {"metrics": {"norms": lambda r, t: r.squared_norms(t).sum()}},
    }
    for name, settings in cases.items():
        one = numbers(classifier(**settings).fit(X, y))
        many = clone(classifier(**settings, distributed=True))
        many = pickle.loads(pickle.dumps(many)) if name != "metrics" else many
        two = numbers(many.fit(X, y, X_val=X[:9], y_val=y[:9]))
        if name != "early stopping":  # one holds out, and the other need not
            two = numbers(many.fit(X, y))
            found[name] = [float(np.abs(one - two).max()), two.tobytes().hex()]
        else:
            found[name] = [0.0, two.tobytes().hex()]
    labels = np.array(["b", "c", "a"])[y]
    named = classifier(distributed=True).fit(X, labels)
    found["classes"] = [float(list(named.classes_) != ["a", "b", "c"]), ""]
    free = classifier(distributed=True, random_state=None, method="sgd").fit(X, y)
    found["seeds of the first"] = [0.0, numbers(free).tobytes().hex()]
    targets = X[:, :1] * 2
    regressors = [
        NoisyDiffusionRegressor(max_iter=4, random_state=0, distributed=many)
        for many in (False, True)
    ]
    one, two = (numbers(model.fit(X, targets)) for model in regressors)
    found["a regressor"] = [float(np.abs(one - two).max()) / 1e5, two.tobytes().hex()]
    streamed = TensorDataset(*data(41))
    one, two = (
        numbers(classifier(distributed=many).fit(streamed)) for many in (False, True)
    )
    found["a data set"] = [float(np.abs(one - two).max()), two.tobytes().hex()]
    return found


class _Seen(Callback):
    """What a callback is given: this rank's own part."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.n = [len(X), len(y)]


def of_own_parts(rank):
    """Each rank has a Subset of its own; none has examples of all three classes."""
    order = np.argsort(y, kind="stable")
    whole = TensorDataset(*(part[order] for part in data(41)))
    first = int((y < 2).sum())
    own = range(first) if rank == 0 else range(first, len(y))
    part, weights = Subset(whole, own), np.linspace(1, 2, len(y))
    validation = data(9)
    cases = {
        "sgd": {"method": "sgd"},
        "balanced": {"class_weight": "balanced", "method": "gld_full"},
        "batches": {"gradient_batch_size": 10, "method": "gd"},
        "a warm-up": {"method": "gld_diagonal", "warmup": {"max_iter": 3}},
    }
    found = {}
    for name, settings in cases.items():
        one, two = classifier(**settings), classifier(**settings, distributed=True)
        one.fit(whole, None, weights, X_val=TensorDataset(*validation))
        rows = range(3) if rank == 0 else range(3, 9)
        held_out = Subset(TensorDataset(*validation), rows)
        seen = _Seen()
        two.set_params(callbacks=[seen]).fit(part, None, weights[own], X_val=held_out)
        found[f"own parts: {name}, callbacks"] = [float(seen.n != [len(own)] * 2), ""]
        off = float(np.abs(numbers(one) - numbers(two)).max())
        found[f"own parts: {name}"] = [off, numbers(two).tobytes().hex()]
    found["own parts: classes"] = [float(list(two.classes_) != [0, 1, 2]), ""]
    both = {"class_weight": {0: 1, 1: 100, 2: 1000}}
    one = classifier(**both).fit(whole, None, weights)
    two = classifier(**both, distributed=True).fit(part, None, weights[own])
    risks = [one.make_risk(whole, None, weights)]
    risks.append(two.make_risk(part, None, weights[own], distributed=True))
    right, got = (np.append(r.gradient(r.params()), r.value(r.params())) for r in risks)
    found["own parts: both weights"] = [float(np.abs(right - got).max()), ""]
    shapes = {"n_components": 2, "random_state": 0}
    one = CurvatureAnalyzer(one, **shapes).fit(whole, None, weights)
    two = CurvatureAnalyzer(two, **shapes, distributed=True)
    two.fit(part, None, weights[own])
    off = np.abs(one.eigen().eigenvalues - two.eigen().eigenvalues).max()
    found["own parts: both weights, eigen"] = [float(off), ""]
    none = {"class_weight": {0: 0.0, 1: 1.0, 2: 1.0}}
    zeros = weights.copy()
    zeros[:first] = 0.0
    one = classifier(**none).fit(whole, None, zeros)
    two = classifier(**none, distributed=True).fit(part, None, zeros[own])
    off = float(np.abs(numbers(one) - numbers(two)).max())
    found["own parts: nothing of one rank counts"] = [off, numbers(two).tobytes().hex()]
    single = range(1) if rank == 0 else range(1, len(y))
    one = classifier().fit(whole)
    two = classifier(distributed=True).fit(Subset(whole, single))
    off = float(np.abs(numbers(one) - numbers(two)).max())
    found["own parts: one example"] = [off, numbers(two).tobytes().hex()]
    targets = TensorDataset(*(torch.from_numpy(a) for a in (X, X[:, :1] * 2)))
    settings = {"max_iter": 4, "random_state": 0, "dtype": "float64"}
    one = NoisyDiffusionRegressor(**settings).fit(targets)
    two = NoisyDiffusionRegressor(**settings, distributed=True)
    two.fit(Subset(targets, own))
    off = float(np.abs(numbers(one) - numbers(two)).max())
    found["own parts: a regressor"] = [off, numbers(two).tobytes().hex()]
    settings = {"distributed": True, "checkpoint_dir": folder() / "own parts"}
    short, again = (classifier(**settings).fit(part) for _ in range(2))
    off = float(np.abs(short.params_ - again.params_).max())
    found["own parts: read back"] = [off, again.params_.tobytes().hex()]
    return found


def of_analyzers():
    found = {}
    calls = {
        "Curvature": (
            CurvatureAnalyzer,
            {
                "eigen": lambda a: a.eigen().eigenvalues,
                "trace": lambda a: a.trace().value,
                "diagonal": lambda a: a.diagonal().value,
                "density": lambda a: np.stack([a.density().nodes, a.density().weights]),
                "matvec": lambda a: a.matvec(np.ones(43)),
                "transform": lambda a: a.transform(X, y),
                "score": lambda a: a.score(X, y),
            },
        ),
        "Noise": (
            NoiseCovarianceAnalyzer,
            {
                "eigen": lambda a: a.eigen().eigenvalues,
                "trace": lambda a: a.trace().value,
                "diagonal": lambda a: a.diagonal().value,
                "sample": lambda a: a.sample(3),
                "alignment": lambda a: a.alignment().quantities.to_numpy(),
                "transform": lambda a: a.transform(X, y),
                "score": lambda a: a.score(X, y),
            },
        ),
    }
    settings = {"loss": "cross_entropy", "n_components": 3, "random_state": 0}
    for name, (kind, quantities) in calls.items():
        one, two = (
            kind(net(), **settings, distributed=many).fit(X, y)
            for many in (False, True)
        )
        for quantity, call in quantities.items():
            right, got = (np.asarray(call(each)) for each in (one, two))
            off = float(np.nanmax(np.abs(right - got)) / np.nanmax(np.abs(right)))
            found[f"{name}: {quantity}"] = [off, got.tobytes().hex()]
        found[f"{name}: audit"] = [float(len(two.audit().fails)), ""]
    for measure in SHARPNESS_MEASURES:
        options = {"loss": "cross_entropy", "measure": measure}
        scores = [
            SharpnessScorer(**options, distributed=many)(net(), X, y)
            for many in (False, True)
        ]
        found[measure] = [abs(scores[0] / scores[1] - 1), ""]
    return found


def of_monitor(rank):
    """All examples, and a part of them; every rank has all, or a Subset of its own."""
    own = Subset(TensorDataset(*data(400)), range(150) if rank else range(150, 400))
    settings = {"loss": "cross_entropy", "quantities": ("loss", "max_eigenvalue")}
    order = [*range(150, 400), *range(150)]
    whole = tuple(part[order] for part in data(400))
    found = {}
    for budget in (100.0, 30.0):
        one = FlatnessMonitor(*whole, **settings, budget=budget)(net(), 0)
        for name, shared in (("all", whole), ("own parts", (own,))):
            monitor = FlatnessMonitor(
                *shared, **settings, budget=budget, distributed=True
            )
            two = monitor(net(), 0)
            off = max(abs(one[name] - two[name]) for name in one)
            told = json.dumps(two)
            found[f"monitor: {name}, {one['n_examples']}"] = [off, told]
    return found


def of_checkpoints(rank):
    """A run that ends early, and goes on; files come from the first rank alone."""
    place = folder() / "run"
    settings = {"method": "sgd", "distributed": True, "checkpoint_dir": place}

    write, written = CheckpointFolder.write, []

    def stop(self, content):
        written.append(1)
        if len(written) == 3:
            raise RuntimeError("stopped on the way")
        write(self, content)

    whole = classifier(method="sgd", distributed=True).fit(X, y).params_
    CheckpointFolder.write = stop
    first = tell(lambda: classifier(**settings).fit(X, y))
    CheckpointFolder.write = write
    wrote = len(written) == (0 if rank else 3)
    again = classifier(**settings).fit(X, y).params_
    writer = sorted(path.name for path in place.iterdir())
    return {
        "checkpoints: stopped": [float("stopped on the way" not in first[1]), ""],
        "checkpoints: the first writes": [float(not wrote), ""],
        "checkpoints: goes on": [float(np.abs(whole - again).max()), ""],
        "checkpoints: files": [float(len(writer) == 0), json.dumps(writer)],
    }


def of_refusals(rank):
    examples = TensorDataset(*data(41))
    same = Subset(examples, range(20))
    labels = torch.zeros(41) if rank else torch.zeros(41, dtype=torch.long)
    kinds = Subset(TensorDataset(data(41)[0], labels), range(rank, 41, 2))
    other = Subset(examples, range(rank, 41, 2) if rank == 0 else range(1, 31, 2))
    place = {"checkpoint_dir": folder() / "own parts"}
    fitted = classifier(distributed=True).fit(X, y)
    bad = X.copy()
    bad[3] = np.nan if rank else bad[3]
    return {
        "memory": tell(lambda: classifier(distributed=True, memory="x").fit(X, y)),
        "the same Subset": tell(lambda: classifier(distributed=True).fit(same)),
        "labels of two kinds": tell(lambda: classifier(distributed=True).fit(kinds)),
        "another part": tell(
            lambda: classifier(distributed=True, **place).fit(other),
        ),
        "weights of all": tell(
            lambda: classifier(distributed=True).fit(other, None, np.ones(41))
        ),
        "nothing to hold out": tell(
            lambda: classifier(distributed=True, training={"early_stopping": True}).fit(
                other
            )
        ),
        "NaN on one rank": tell(lambda: classifier(distributed=True).fit(bad, y)),
        "an analyzer alone": tell(lambda: CurvatureAnalyzer(fitted).eigen(1)),
        "all is well": tell(lambda: classifier(distributed=True).fit(X, y)),
    }


def shown(rank):
    sys.stderr.write("<progress>")
    classifier(distributed=True, verbose=True).fit(X, y)
    sys.stderr.write("</progress>")


if __name__ == "__main__":
    rank = join()
    numbers_ = of_estimators() | of_own_parts(rank)
    numbers_ |= of_analyzers() | of_monitor(rank) | of_checkpoints(rank)
    refusals = of_refusals(rank)
    shown(rank)
    assert torch.distributed.is_initialized()
    say({"numbers": numbers_, "refusals": refusals})
