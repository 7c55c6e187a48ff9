"""Some of the examples in the place of all, against a jackknife of dense Hessians."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t
from sklearn.base import clone
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer
from flatmin.analysis._counted_risk import WorkCounter, counted
from flatmin.analysis._of_all import Found, estimate_all
from flatmin.analysis._sample import LEAST, N_BLOCKS, draw_sample
from flatmin.measures import SHARPNESS_MEASURES
from flatmin.risk import EmpiricalRisk

from ._problems import blobs, classifier, network

N_ALL, N, L2 = 600, 403, 0.3
X, y = blobs(N_ALL)
WEIGHTS = np.random.default_rng(1).uniform(0.2, 3.0, N_ALL)
OPTIONS = {"loss": "cross_entropy", "dtype": "float64", "random_state": 3}
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "subsets.json"


@pytest.fixture(scope="module")
def net():
    return network(seed=2)


@pytest.fixture(scope="module")
def dense(net):
    """Return the mean of some ℓ̃ᵢ as a function of θ, and all gradients, by autograd."""
    module = network(seed=2).double()
    shapes = {name: p.shape for name, p in module.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    weights = torch.tensor(WEIGHTS * N_ALL / WEIGHTS.sum())
    inputs, labels = torch.tensor(X).double(), torch.tensor(y)

    def losses(theta, chosen):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        values = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        outputs = functional_call(module, values, (inputs[chosen],))
        entropy = F.cross_entropy(outputs, labels[chosen], reduction="none")
        return weights[chosen] * entropy

    gradients = jacobian(lambda at: losses(at, torch.arange(N_ALL)), theta)
    return losses, theta, gradients.numpy()


@pytest.fixture
def drawn(monkeypatch):
    """Return a list of the indices that risks are restricted to, in turn."""
    found, subset = [], EmpiricalRisk.subset

    def spy(self, indices):
        found.append(indices.numpy())
        return subset(self, indices)

    monkeypatch.setattr(EmpiricalRisk, "subset", spy)
    return found


def fitted(kind, net, subset=N, l2=L2, **options):
    return kind(net, subset=subset, l2=l2, **OPTIONS, **options).fit(X, y, WEIGHTS)


def curvature(dense, chosen):
    losses, theta, _ = dense
    chosen = torch.as_tensor(chosen)
    H = hessian(lambda at: losses(at, chosen).mean(), theta)
    return H.numpy() + L2 * np.eye(len(theta))


def sigma(dense, chosen):
    centred = dense[2][chosen] - dense[2][chosen].mean(0)
    return centred.T @ centred / len(chosen)


def by_hand(number, chosen, parts, *, leave_out):
    """Return the estimate of the whole and its error, from all numbers of the parts."""
    own, J = number(chosen), len(parts)
    parts = np.array([number(chosen[part]) for part in parts])
    if leave_out:  # the jackknife of Quenouille and Tukey
        bias = (J - 1) * (parts.mean(0) - own)
        variance = (J - 1) / J * ((parts - parts.mean(0)) ** 2).sum(0)
    else:  # the mean of J independent numbers
        bias = (parts.mean(0) - own) / (J - 1)
        variance = parts.var(0, ddof=1) / J
    rest = 1 - N / N_ALL
    return own - rest * bias, np.sqrt(rest * variance + (rest * bias) ** 2)


CASES = {
    "λ": (
        CurvatureAnalyzer,
        lambda a: a.eigen(3),
        lambda dense, c: np.linalg.eigvalsh(curvature(dense, c))[::-1][:3],
        True,
    ),
    "γ": (
        NoiseCovarianceAnalyzer,
        lambda a: a.eigen(2),
        lambda dense, c: np.linalg.eigvalsh(sigma(dense, c))[::-1][:2],
        True,
    ),
    "Tr(H)": (
        CurvatureAnalyzer,
        lambda a: a.trace(),
        lambda dense, c: np.trace(curvature(dense, c)),
        False,
    ),
    "diag(H)": (
        CurvatureAnalyzer,
        lambda a: a.diagonal(),
        lambda dense, c: np.diag(curvature(dense, c)),
        False,
    ),
    "Tr(Σ)": (
        NoiseCovarianceAnalyzer,
        lambda a: a.trace(),
        lambda dense, c: np.trace(sigma(dense, c)),
        False,
    ),
    "diag(Σ)": (
        NoiseCovarianceAnalyzer,
        lambda a: a.diagonal(),
        lambda dense, c: np.diag(sigma(dense, c)),
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_estimates_and_errors_are_those_of_the_dense_jackknife(net, dense, drawn, name):
    kind, ask, number, leave_out = CASES[name]
    analyzer = fitted(kind, net)
    found = ask(analyzer)
    chosen, *parts = drawn
    assert len(set(chosen)) == len(chosen) == N
    assert len(parts) == N_BLOCKS
    # Each example comes equally often: never without its block, or in its block alone.
    times = np.bincount(np.concatenate(parts), minlength=N)
    assert (times == (N_BLOCKS - 1 if leave_out else 1)).all()
    value, stderr = by_hand(
        lambda c: number(dense, c), chosen, parts, leave_out=leave_out
    )
    np.testing.assert_allclose(found.value, value, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.stderr, stderr, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        found.sampling.bias, number(dense, chosen) - value, rtol=1e-4, atol=1e-8
    )
    low, high = found.interval(0.9)
    np.testing.assert_allclose(high - low, 2 * t(9).ppf(0.95) * found.stderr)
    assert f"{N} of {N_ALL} examples" in repr(found)


def test_positions_that_do_not_count(drawn):
    """L is the mean over all targets that count, whichever a subset has of them."""
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(N_ALL, 4, 3, generator=rng, dtype=torch.float64)
    targets = torch.randint(0, 3, (N_ALL, 4), generator=rng)
    left_out = (
        torch.rand(N_ALL, 4, generator=rng) < torch.linspace(0, 0.9, N_ALL)[:, None]
    )
    targets = targets.masked_fill(left_out, -100)
    linear = nn.Linear(3, 3).double()
    analyzer = CurvatureAnalyzer(
        linear, output_transform=lambda f: f.transpose(1, 2), subset=N, **OPTIONS
    )
    found = analyzer.fit(data, targets).trace()
    chosen, *parts = drawn
    weight, bias = (p.detach() for p in linear.parameters())

    def number(c):
        def loss(W, b):
            outputs = data[c] @ W.T + b
            total = F.cross_entropy(
                outputs.transpose(1, 2), targets[c], reduction="sum", ignore_index=-100
            )
            return total * N_ALL / (targets != -100).sum() / len(c)

        blocks = hessian(loss, (weight, bias))
        of_weight = blocks[0][0].reshape(9, 9).trace()
        return float(of_weight + blocks[1][1].trace())

    value, stderr = by_hand(number, chosen, parts, leave_out=False)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.stderr == pytest.approx(stderr, rel=1e-6)


def test_the_table_of_the_alignment(net, dense, drawn):
    table = fitted(NoiseCovarianceAnalyzer, net, l2=L2).alignment(2)
    chosen, *parts = drawn

    def number(c):
        h, s = curvature(dense, c), sigma(dense, c)
        product = np.trace(h @ s)
        size = np.trace(h) * np.trace(s) / len(h)
        norms = np.linalg.norm(h), np.linalg.norm(s)
        return np.array([*norms, product, size, product / size])

    # All is exact for as few parameters, so that blocks can be left out.
    value, stderr = by_hand(number, chosen, parts, leave_out=True)
    rows = ["‖H‖_F", "‖Σ‖_F", "Tr(HΣ)", "Tr(H)Tr(Σ)/D", "anisotropy gain"]
    shown = table.to_frame().loc[rows]
    np.testing.assert_allclose(shown["value"], value, rtol=1e-5)
    np.testing.assert_allclose(shown["stderr"], stderr, rtol=1e-3)
    for name in ("overlap", "a", "trace alignment"):
        assert np.isnan(table[name])
        assert "sampling error" in table.undefined[name]
    assert np.isnan(table.pairs.to_numpy()).all()
    assert np.isnan(table.inner_products).all()


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher"])
def test_means_of_other_matrices(net, drawn, matrix):
    """A trace is a mean: of as many examples the parts have the mean of the whole."""
    analyzer = fitted(CurvatureAnalyzer, net, 400, matrix=matrix)
    found = analyzer.trace(rtol=1e-9)
    whole = fitted(CurvatureAnalyzer, net, None, matrix=matrix).trace(rtol=1e-9)
    assert abs(found.value - whole.value) < 4 * found.stderr
    assert 0 < found.stderr < 0.5 * whole.value


def test_probes_and_the_draw_are_both_in_the_error(net):
    wide = nn.Sequential(nn.Linear(3, 60), nn.Tanh(), nn.Linear(60, 3))
    analyzer = CurvatureAnalyzer(wide, subset=N, **OPTIONS).fit(X, y)
    found = analyzer.trace(rtol=0.3, max_matvecs=20)
    assert found.stderr > found.sampling.stderr > 0


def test_everything_is_no_subset(net):
    for subset in (N_ALL, 1.0, None):
        for kind in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
            analyzer = fitted(kind, net, subset)
            assert analyzer.trace() == fitted(kind, net, None).trace()
            assert analyzer.trace().sampling is None
            assert analyzer.eigen(2).stderr is None
            assert "stderr" not in analyzer.eigen(2).to_frame()
            with pytest.raises(ValueError, match="one of all examples"):
                analyzer.trace().interval()
    scorer = SharpnessScorer(net, subset=1.0, loss="cross_entropy").fit(X, y)
    assert scorer.sampling_ is None


def test_a_share_and_the_random_state(net):
    def numbers(**options):
        settings = OPTIONS | options
        return CurvatureAnalyzer(net, **settings).fit(X, y).trace()

    share, size = numbers(subset=0.75), numbers(subset=450)
    assert share.value == size.value
    assert share.to_frame()["n_examples"].item() == 450
    assert share.to_frame()["n_all"].item() == N_ALL
    assert numbers(subset=450, random_state=4).value != share.value


def test_the_training_data_without_a_fit():
    clf = classifier(max_iter=5).fit(X, y)
    once, again = (
        CurvatureAnalyzer(clf, subset=N, random_state=0).trace() for _ in range(2)
    )
    assert once.sampling.n_all == N_ALL
    assert once.value == again.value


@pytest.mark.parametrize("measure", ["trace", "max_eigenvalue", "fisher_rao"])
def test_sharpness(net, drawn, measure):
    scorer = SharpnessScorer(net, measure=measure, subset=N, loss="cross_entropy")
    score = scorer.fit(X, y).score(X, y)
    assert score == -scorer.sharpness_
    chosen, *parts = drawn[: 1 + N_BLOCKS]

    def number(c):
        risk = EmpiricalRisk(net, "cross_entropy", X[c], y[c])
        return float(SHARPNESS_MEASURES[measure](risk, risk.params()))

    value, stderr = by_hand(number, chosen, parts, leave_out=True)
    assert scorer.sharpness_ == pytest.approx(value, rel=1e-3)
    assert scorer.stderr_ == pytest.approx(stderr, rel=1e-2)
    assert scorer.sampling_.n_examples == N
    assert clone(scorer).subset == N


def test_expected_sharpness_meets_the_same_draws_on_each_block(net):
    """Else the error of the draws would be in the spread of the blocks again."""
    options = {"loss": "cross_entropy", "sigma": 0.05, "n_draws": 20}
    scorer = SharpnessScorer(net, subset=400, **options).fit(X, y)
    whole = SharpnessScorer(net, **options).fit(X, y)
    # With the same perturbations, the mean of the blocks is the subset's number.
    assert abs(scorer.sampling_.bias) < 1e-4 * scorer.sharpness_
    assert abs(scorer.sharpness_ - whole.sharpness_) < 4 * scorer.stderr_
    assert scorer.stderr_ > scorer.sampling_.stderr > 0


def test_a_part_that_has_not_converged_leaves_nothing_known(net):
    kept = []

    def measure(risk):
        kept.append(risk.n_examples)
        return Found(2.0, np.nan if len(kept) == 3 else 0.0)

    X, y = np.zeros((2 * LEAST, 3)), np.zeros(2 * LEAST, dtype=int)
    risk = EmpiricalRisk(nn.Linear(3, 2), "cross_entropy", X, y)
    found = estimate_all(draw_sample(risk, LEAST, 0), Found(2.0, 0.0), measure)
    assert np.isnan(found.value)
    assert np.isnan(found.stderr)
    # One that has not converged draws nothing: the others are still left out.
    kept.clear()
    estimate_all(draw_sample(risk, LEAST, 0), Found(2.0, np.nan), measure)
    assert set(kept) == {LEAST - LEAST // N_BLOCKS}


def test_what_is_refused(net):
    def refuses(message, call):
        with pytest.raises(ValueError, match=message):
            call()

    of_h = fitted(CurvatureAnalyzer, net)
    noise = fitted(NoiseCovarianceAnalyzer, net)
    for call in (
        lambda: of_h.density(),
        lambda: of_h.cost("density"),
        lambda: of_h.matvec(np.ones(31)),
        lambda: of_h.transform(X, y),
        lambda: of_h.score(X, y),
        lambda: of_h.eigen(2, which="SA"),
        lambda: noise.sample(),
        lambda: noise.alignment(by_layer=True),
        lambda: noise.transform(X, y),
        lambda: noise.score(X, y),
    ):
        refuses("no sampling error.*403 of 600 examples.*subset=None", call)
    kind = CurvatureAnalyzer
    refuses("at most the number of examples, 600", lambda: fitted(kind, net, 601))
    refuses(f"at least {LEAST} examples", lambda: fitted(kind, net, LEAST - 1))
    for wrong in (0, -1, 0.0, 1.5, "half"):
        refuses("subset", lambda wrong=wrong: fitted(kind, net, wrong))
    refuses("level must be", lambda: of_h.trace().interval(1.5))
    for measure in ("sam", "asam", lambda risk, theta: risk.value(theta)):
        scorer = SharpnessScorer(
            net, measure=measure, subset=N, loss="cross_entropy", random_state=0
        )
        refuses("no sampling error", lambda scorer=scorer: scorer.fit(X, y))


def test_the_statistics_of_a_batch_are_no_mean_over_examples():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    analyzer = CurvatureAnalyzer(module, subset=N, batch_norm="batch", **OPTIONS)
    with pytest.raises(ValueError, match="batch_norm='frozen'"):
        analyzer.fit(X, y)


@pytest.mark.parametrize("call", ["eigen", "trace", "diagonal"])
@pytest.mark.parametrize("kind", [CurvatureAnalyzer, NoiseCovarianceAnalyzer])
def test_what_it_costs(net, kind, call):
    analyzer = fitted(kind, net, n_components=2)
    told = analyzer.cost(call)
    assert told.n_examples == N
    assert told.n_all == N_ALL
    assert f"gradients of {N} of {N_ALL} examples" in repr(told)
    counter = WorkCounter()
    analyzer.risk_ = counted(analyzer.risk_, counter)
    analyzer._drawn = replace(analyzer._drawn, risk=analyzer.risk_)
    getattr(analyzer, call)()
    assert counter.n_gradients == pytest.approx(told.example_gradients, rel=1e-6)


@pytest.mark.skipif(not RESULTS.exists(), reason="a release has no benchmarks")
def test_the_sizes_below_which_it_is_refused_were_measured():
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert stored["n_blocks"] == N_BLOCKS
    assert stored["n_draws"] >= 200
    lowest = {}
    for row in (row for problem in stored["problems"] for row in problem["rows"]):
        coverage = min(row["coverage"].values())
        lowest[row["n"]] = min(coverage, lowest.get(row["n"], 1.0))
    covered = {n: coverage >= 0.9 for n, coverage in lowest.items()}
    assert min(n for n in lowest if all(covered[m] for m in lowest if m >= n)) == LEAST
