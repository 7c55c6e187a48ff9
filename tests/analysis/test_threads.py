"""Analyzers of one fitted model in two threads."""

import joblib
import pytest
import torch
from sklearn.model_selection import GridSearchCV

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer
from flatmin.comparison import compare_dynamics
from flatmin.measures import max_eigenvalue

from ..threads import against, plain, public, race
from ._problems import blobs, classifier

X, y = blobs()


@pytest.fixture(scope="module")
def clf():
    return classifier().fit(X, y)


def calls(analyzer, seed):
    """Return a call of each public method."""
    v = torch.randn(31, generator=torch.Generator().manual_seed(seed)).numpy()
    of = {
        "alignment": lambda: analyzer.alignment(2),
        "density": lambda: analyzer.density(n_probes=2, n_steps=4),
        "diagonal": lambda: analyzer.diagonal().value,
        "eigen": lambda: [analyzer.eigen(), analyzer.eigen(2, which="SA")],
        "matvec": lambda: analyzer.matvec(v),
        "sample": lambda: analyzer.sample(2),
        "score": lambda: analyzer.score(X, y),
        "trace": lambda: vars(analyzer.trace()),
        "transform": lambda: analyzer.transform(X, y),
        "get_params": lambda: type(analyzer.get_params()),
        "set_params": lambda: type(analyzer.set_params(verbose=False)),
        "cost": lambda: analyzer.cost("eigen").gradients,
        "audit": lambda: [c.verdict for c in analyzer.audit().checks],
        "fit": lambda: type(analyzer.fit()),
        "fit_transform": lambda: analyzer.fit_transform(X, y),
    }
    assert set(of) >= public(type(analyzer))
    return {name: call for name, call in of.items() if hasattr(analyzer, name)}


def kinds(clf):
    return [
        CurvatureAnalyzer(clf, n_components=3, random_state=0),
        CurvatureAnalyzer(clf, n_components=3, matrix="ggn", random_state=0),
        NoiseCovarianceAnalyzer(clf, n_components=3, random_state=0),
    ]


def without(calls, *names):
    return {name: call for name, call in calls.items() if name not in names}


@pytest.mark.parametrize("shared", ["model", "analyzer"])
def test_every_method_in_two_threads(clf, shared):
    """Also the same methods of one analyzer, and those of the model meanwhile."""
    first, second, third = kinds(clf)
    pairs = [(first, third), (second, third)]
    if shared == "analyzer":
        first.fit(), third.fit()
        pairs = [(first, first), (third, third)]
    for pair in pairs:
        # Another fit moves the data that the other thread asks about: not on one.
        left_out = ("audit",) if shared == "model" else ("audit", "fit_transform")
        work = [without(calls(a, i), *left_out) for i, a in enumerate(pair)]
        right, faults = race(work)
        assert not faults
        assert right == sum(map(len, work))


def test_scorers_and_predictions_beside_an_analyzer(clf):
    analyzer = without(calls(kinds(clf)[0], 0), "audit")
    of_model = {
        "predict": lambda: clf.predict(X),
        "predict_proba": lambda: clf.predict_proba(X),
        "score": lambda: clf.score(X, y),
        "make_risk": lambda: clf.make_risk(X, y).gradient(clf.risk_.params()),
        "risk_": lambda: clf.risk_.params(),
    }
    scorer = SharpnessScorer(clf, n_draws=5)
    of_scorer = {
        "call": lambda: scorer(clf, X, y),
        "training": lambda: scorer(clf),
        "fit": lambda: scorer.fit().sharpness_,
        "score": lambda: scorer.score(X, y),
        **{
            measure: lambda m=measure: SharpnessScorer(measure=m, n_draws=None)(clf)
            for measure in ("trace", "max_eigenvalue", "sam", "fisher_rao")
        },
    }
    assert set(of_scorer) | {"get_params", "set_params"} >= public(SharpnessScorer)
    work = [analyzer, of_model, of_scorer]
    right, faults = race(work)
    assert not faults
    assert right == sum(map(len, work))
    fresh = classifier().fit(X, y).risk_
    assert torch.equal(
        clf.risk_.gradient(fresh.params()), fresh.gradient(fresh.params())
    )


def test_the_audit_beside_another_analyzer(clf):
    audited, other = kinds(clf)[::2]
    work, found = without(calls(other, 0), "audit"), []
    expected = [{"audit": plain(None)}, {n: plain(f()) for n, f in work.items()}]
    audit = {"audit": lambda: found.append(audited.audit())}
    _, faults = against(expected, [audit, work])
    assert not faults
    assert not found[0].fails


def test_a_search_by_threads_gives_what_one_gives(clf):
    def search(n_jobs):
        with joblib.parallel_backend("threading"):
            found = GridSearchCV(
                classifier(max_iter=5, record_every=5),
                {"lr": [0.1, 0.2]},
                scoring={"accuracy": "accuracy", "flat": SharpnessScorer(n_draws=5)},
                refit=False,
                cv=2,
                n_jobs=n_jobs,
            ).fit(X, y)
        return [found.cv_results_[f"mean_test_{name}"] for name in ("accuracy", "flat")]

    assert plain(search(1)) == plain(search(2))


def test_a_comparison_by_threads_gives_what_one_gives():
    def compare(n_jobs):
        model = classifier(
            max_iter=4,
            record_every=2,
            metrics={"sharpness": lambda risk, theta: max_eigenvalue(risk, theta)},
        )
        with joblib.parallel_backend("threading"):
            result = compare_dynamics(
                ["gd", "gld_leading"],
                X,
                y,
                estimator=model,
                n_seeds=2,
                n_jobs=n_jobs,
                random_state=0,
            )
        return result.table

    assert plain(compare(1)) == plain(compare(2))
