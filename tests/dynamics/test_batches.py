"""Iterations that see a fresh batch of B examples each."""

import copy

import pytest
import torch

from flatmin.dynamics import FlatBinding, GradientBatches, NoisyDescent, Recorder
from flatmin.noise import GD, METHODS, make_noise_law
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from .. import oracles
from ..noise._statistics import BLOCK, assert_distribution, assert_mean
from ..noise.test_conformance import NoHostReads
from ._problems import network, risk

N, B, M = 12, 5, 2
N_DRAWS = 200 * BLOCK


def batches(whole=None, size=B, seed=3):
    whole = risk() if whole is None else whole
    return GradientBatches(whole, size, torch.Generator().manual_seed(seed))


def descent(law, whole=None, **settings):
    law = make_noise_law(law, **settings) if isinstance(law, str) else law
    module = network()
    binding = FlatBinding(module)
    whole = risk(module) if whole is None else whole
    step = torch.optim.SGD(binding.params, lr=0.1)
    rng = torch.Generator().manual_seed(2)
    return NoisyDescent(whole, law, binding, step, rng=rng, batches=batches(whole))


@pytest.fixture(scope="module")
def gradients():
    """gᵢ at the network's initial parameters, (N, D)."""
    module, X, y = network(), risk()._data.X, risk()._data.y
    theta = oracles.flat_parameters(module)
    return oracles.dense(module, oracles.squared_error, X, y, theta).gradients


@pytest.fixture(scope="module")
def covariance(gradients):
    """Σ."""
    centred = gradients - gradients.mean(0)
    return centred.T @ centred / N


@pytest.mark.parametrize("law", [law for law in METHODS if law != "svag"])
def test_a_step_is_the_law_on_the_batch(law):
    settings = {"batch_size": M} if law not in {"gd", "sam"} else {}
    run, by_hand = descent(law, **settings), batches()
    theta, rng = run.theta.clone(), torch.Generator().manual_seed(2)
    state = None
    for iteration in range(3):
        part = by_hand.draw()
        assert part.n_examples == B
        if iteration % run.law.refresh_every == 0:
            state = run.law.refresh(part, theta, rng, state)
        _, gradient = run.law.noisy_gradient(part, theta, state, rng)
        theta -= 0.1 * gradient
    run.run(3)
    torch.testing.assert_close(run.theta, theta, rtol=0, atol=1e-14)


def test_the_batchs_gradient(gradients, covariance):
    """Mean g₀, covariance (N - B)/(N - 1) Σ/B."""
    whole = risk()
    theta, fresh = whole.params(), batches(whole)
    draws = torch.stack([fresh.draw().gradient(theta) for _ in range(N_DRAWS)])
    expected = (N - B) / (N - 1) * covariance / B
    assert_distribution(draws - gradients.mean(0), expected)


def test_the_laws_noise_inside_one_batch(gradients):
    """Mean g_B, covariance Σ_B/m."""
    law, chosen = (
        make_noise_law("gld_full", batch_size=M),
        torch.tensor([7, 0, 3, 9, 4]),
    )
    part = risk().subset(chosen)
    theta, rng = part.params(), torch.Generator().manual_seed(0)
    mean = gradients[chosen].mean(0)
    centred = gradients[chosen] - mean
    expected = centred.T @ centred / B / M
    draws = torch.stack(
        [law.noisy_gradient(part, theta, None, rng)[1] for _ in range(N_DRAWS)]
    )
    assert_distribution(draws - mean, expected)
    torch.testing.assert_close(law.covariance(part, theta, None).to_dense(), expected)


@pytest.mark.parametrize("law", ["gld_full", "sgd"])
def test_the_whole_noise(law, gradients, covariance):
    """Of the batch, and the law's, with E Σ_B = (1 - 1/B) N/(N - 1) Σ."""
    run = descent(law, batch_size=M)
    theta, draws = run.theta.clone(), []
    for _ in range(N_DRAWS):
        run.binding.assign(theta)
        run.run(1)
        draws.append((theta - run.theta) / 0.1 - gradients.mean(0))
    noise = torch.stack(draws)
    assert_mean(noise.unflatten(0, (-1, BLOCK)).mean(1), 0.0)
    of_law = (1 - 1 / B) * N / (N - 1) * covariance / M
    expected = (N - B) / (N - 1) * covariance / B + of_law
    squares = noise.unsqueeze(2) * noise.unsqueeze(1)
    blocks = squares.unflatten(0, (-1, BLOCK)).mean(1)
    assert_mean(blocks, expected)
    assert_mean(blocks.diagonal(dim1=1, dim2=2).sum(1), expected.trace())


class Spy(GD):
    """Writes down what it sees."""

    def __init__(self, *, refresh_every=1):
        self.refresh_every = refresh_every
        self.refreshed, self.seen = [], []

    def refresh(self, risk, theta, rng, previous=None):
        self.refreshed.append(risk)

    def noisy_gradient(self, risk, theta, state, rng):
        self.seen.append(risk)
        return super().noisy_gradient(risk, theta, state, rng)


def test_a_batch_an_iteration_and_a_refresh_on_the_one_at_hand():
    run = descent(Spy(refresh_every=3))
    run.refresh()
    run.refresh()
    for block in (2, 2, 3):
        run.run(block)
        run.refresh()
    seen = run.law.seen
    assert len({id(part) for part in seen}) == 7
    assert run.law.refreshed == [seen[0], seen[3], seen[6]]
    assert run.batch not in seen  # drawn for the iteration to come
    for part in seen:
        assert len(part._data.X.unique(dim=0)) == B


def test_equal_seeds_give_every_law_the_same_batches():
    runs = [descent(law) for law in ("gd", "gld_full", "gld_hessian")]
    for run in runs:
        run.run(4)
    assert torch.equal(runs[0].batch._data.X, runs[1].batch._data.X)
    assert torch.equal(runs[0].batch._data.X, runs[2].batch._data.X)


def test_blocks_add_up():
    whole, parts = descent("gld_full"), descent("gld_full")
    whole.run(10)
    for block in (3, 0, 1, 6):
        parts.run(block)
    assert torch.equal(whole.theta, parts.theta)


@pytest.mark.parametrize("law", ["gd", "gld_full", "gld_ggn", "gld_diagonal"])
def test_an_iteration_costs_what_b_examples_cost(law, monkeypatch):
    """Examples that go through the network, and copies of it that are made."""
    whole = risk()
    run = descent(law, whole, batch_size=M) if law != "gd" else descent(law, whole)
    batches(whole).check(run.law)  # trials are made once
    run.run(1)
    lengths = []
    whole._model.module.register_forward_hook(
        lambda module, inputs, outputs: lengths.append(len(outputs))
    )
    with monkeypatch.context() as context:  # a report of a failure copies, too
        context.setattr(copy, "deepcopy", None)
        run.run(5)
    assert lengths == [B] * 5


def test_a_law_with_products_is_traced_once(monkeypatch):
    made, trace = [], graphs.two_stage_graph
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    monkeypatch.setattr(
        graphs, "two_stage_graph", lambda *args: made.append(args) or trace(*args)
    )
    run = descent("gld_hessian", n_components=3, refresh_every=1, batch_size=M)
    run.run(4)
    assert len(made) == 1
    assert run.batch.paths["hvp"] == "graph"


@pytest.mark.parametrize("law", ["gd", "gld_full", "gld_diagonal", "sgd"])
def test_a_batch_is_drawn_on_the_device_and_without_waiting_for_it(law):
    law, fresh, rng = make_noise_law(law), batches(), torch.Generator().manual_seed(0)
    theta = fresh.risk.params()
    fresh.check(law)  # trials are made once
    law.refresh(fresh.draw(), theta, rng)
    # Where a device is not named, a tensor comes to lie on the default one.
    with NoHostReads(), torch.device("meta"):
        part = fresh.draw()
        gradient = law.noisy_gradient(part, theta, law.refresh(part, theta, rng), rng)
    assert gradient[1].device.type == "cpu"


def test_the_row_has_the_noise_in_the_batch_and_the_loss_of_all():
    run = descent("sgd", batch_size=M)
    run.refresh()
    recorder = Recorder(run.risk, lambda outputs: 0.0)
    row = recorder.record(
        0, "noise", run.theta, law=run.law, state=None, batch=run.batch
    )
    sigma = run.batch.gradient_variances(run.theta).sum()
    assert row["noise_norm"] == pytest.approx(float((sigma / M).sqrt()))
    assert row["loss"] == float(run.risk.value(run.theta))


@pytest.mark.parametrize(
    ("law", "settings", "match"),
    [
        (
            "sgd",
            {"batch_size": 6, "sampling": "epoch"},
            "examples, 5, .*Got 6.*An iteration sees gradient_batch_size=5 examples",
        ),
        (
            "sgd",
            {"batch_size": 6, "sampling": "without_replacement"},
            "examples, 5, .*Got 6.*gradient_batch_size=5",
        ),
        (
            "gld_leading",
            {"batch_size": 4},
            "at least two whole .*gradient_batch_size=5",
        ),
        (
            "gld_leading",
            {"batch_size": 2, "n_components": 2},
            "minibatches, 2.*Got 2.*gradient_batch_size=5",
        ),
    ],
)
def test_settings_that_a_batch_is_too_small_for(law, settings, match):
    law, fresh = make_noise_law(law, **settings), batches()
    law.check(fresh.risk)
    before = fresh.rng.get_state()
    with pytest.raises(ValueError, match=match):
        fresh.check(law)
    assert torch.equal(fresh.rng.get_state(), before)


def test_settings_that_a_batch_is_large_enough_for():
    for settings in ({"batch_size": 5, "sampling": "epoch"}, {"batch_size": 6}):
        batches().check(make_noise_law("sgd", **settings))
    assert isinstance(batches().draw(), EmpiricalRisk)


class ByRow(torch.nn.Module):
    """A layer that works on one example after the other: no rows by layer."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 2))

    def forward(self, x):
        return torch.stack([torch.mv(self.weight, row) for row in x])


def test_all_examples_are_tried_where_rows_come_by_layer_alone():
    for module, n_whole in ((ByRow(), 0), (torch.nn.Linear(2, 1), 2)):
        X, y = torch.rand(40, 2), torch.rand(40, 1)
        whole, lengths = EmpiricalRisk(module, "squared_error", X, y), []
        whole._model.module.register_forward_hook(
            lambda module, inputs, outputs, kept=lengths: kept.append(len(outputs))
        )
        batches(whole).check(make_noise_law("gld_diagonal", batch_size=M))
        assert lengths.count(40) == n_whole  # the trial of their order, and the sums
