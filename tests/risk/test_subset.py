"""The risk of some examples, against the rows of the dense oracle and what it costs."""

import copy
import pickle

import pytest
import torch
from torch.utils import data

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from .. import oracles
from ._cases import WEIGHTS, make_risk, oracle, problem

CHOSEN = torch.tensor([5, 0, 0, 3, 6])  # one twice, one of weight 0


@pytest.fixture(autouse=True)
def always_traced(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)


@pytest.fixture
def traced(monkeypatch):
    """What is traced, and how large its chunks are."""
    made, trace = [], graphs.two_stage_graph

    def spy(kernel, theta, direction, X, *rest):
        made.append((kernel.args[0], len(X)))
        return trace(kernel, theta, direction, X, *rest)

    monkeypatch.setattr(graphs, "two_stage_graph", spy)
    return made


def whole(name="mlp", chunk_size=None):
    """Return a risk of seven weighted examples that no other test has touched."""
    return copy.deepcopy(make_risk(name, chunk_size, weighted=True))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(
    "name", ["mlp", "convolutional", "convolutional, one channel", "embedding"]
)
def test_every_word_is_a_mean_over_the_examples(name, chunk_size):
    p, rows = problem(name), oracle(name, weighted=True)
    losses, gradients = rows.losses[CHOSEN], rows.gradients[CHOSEN]
    part = oracles.dense(
        p.module,
        p.case.losses,
        p.X[CHOSEN],
        p.y[CHOSEN],
        p.theta,
        weights=WEIGHTS[CHOSEN],
    )
    # The oracle of the part has weights of mean 1 there, not among all.
    factor = WEIGHTS[CHOSEN].mean() / WEIGHTS.mean()
    mean, theta, B = gradients.mean(0), p.theta, len(CHOSEN)
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    risk = whole(name, chunk_size).subset(CHOSEN)
    assert risk.n_examples == B
    point = risk.linearize(theta)
    for actual, expected in (
        (risk.value(theta), losses.mean()),
        (risk.gradient(theta), mean),
        (risk.weighted_gradient(theta, losses), losses @ gradients / B),
        (risk.batch_gradient(theta, torch.tensor([1, 4])), gradients[[1, 4]].mean(0)),
        (
            risk.batch_gradients(theta, torch.tensor([[0, 1], [3, 4]])),
            torch.stack([gradients[:2].mean(0), gradients[3:].mean(0)]),
        ),
        (torch.cat(list(risk.per_example_gradients(theta))), gradients),
        (risk.squared_norms(theta), gradients.square().sum(1)),
        (risk.gradient_variances(theta), (gradients - mean).square().mean(0)),
        (risk.outputs(theta), rows.outputs[CHOSEN]),
        (point.hvp(v), factor * part.hessian @ v),
        (point.ggn(v), rows.gauss_newtons[CHOSEN].mean(0) @ v),
        (point.directional_derivatives(v), gradients @ v),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_the_whole_is_left_as_it_was():
    risk, theta = whole(), problem("mlp").theta
    before = risk.value_and_gradient(theta)
    part = risk.subset(CHOSEN)
    part.set_params(theta)
    part.linearize(theta).hvp(theta)
    assert torch.equal(risk.gradient(theta), before[1])
    assert (risk.n_examples, part.n_examples) == (7, 5)
    assert not torch.equal(risk.params(), theta)


def test_subsets_of_one_size_share_a_trace(traced):
    risk, theta = whole(chunk_size=3), problem("mlp").theta
    risk.linearize(theta).hvp(theta)
    assert traced == [("hvp", 3)]
    choices, products = (CHOSEN[:4], CHOSEN[1:], torch.arange(4)), []
    for some in choices:
        part = risk.subset(some)
        products.append(part.linearize(theta).hvp(theta))
        assert part.paths["hvp"] == "graph"
    assert traced == [("hvp", 3), ("hvp", 2)]  # four are two chunks of two
    for some, product in zip(choices, products, strict=True):
        alone = whole(chunk_size=3).subset(some)
        torch.testing.assert_close(alone.linearize(theta).hvp(theta), product)


def test_of_a_subset():
    risk, theta = whole(chunk_size=3), problem("mlp").theta
    inner = torch.tensor([4, 2, 0, 1])
    twice = risk.subset(CHOSEN).subset(inner)
    once = risk.subset(CHOSEN[inner])
    for ask in (
        lambda r: r.gradient(theta),
        lambda r: r.linearize(theta).hvp(theta),
        lambda r: r.linearize(theta).vjp(r.outputs(theta)),
    ):
        torch.testing.assert_close(ask(twice), ask(once))


def test_nothing_is_made_anew(monkeypatch):
    """No copy of the module, no trial of what has been tried."""
    risk, theta = whole(), problem("mlp").theta
    risk.squared_norms(theta)

    def refuse(*args, **kwargs):
        raise AssertionError("a copy, or a trial")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    monkeypatch.setattr(type(risk._sums), "_settle", refuse)
    risk.subset(CHOSEN).squared_norms(theta)


def test_copies_are_risks_of_their_own():
    part, theta = whole().subset(CHOSEN), problem("mlp").theta
    product = part.linearize(theta).hvp(theta)
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        twin.set_params(0 * theta)
        assert torch.equal(twin.linearize(theta).hvp(theta), product)


def test_of_a_data_set_the_examples_are_read_once():
    class Counted(data.TensorDataset):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    p = problem("mlp")
    examples = Counted(p.X, p.y)
    streamed = EmpiricalRisk(p.module, p.case.loss, examples, sample_weight=WEIGHTS)
    before = examples.reads
    part = streamed.subset(CHOSEN)
    expected = whole().subset(CHOSEN)
    for ask in (
        lambda r: r.gradient(p.theta),
        lambda r: r.gradient_variances(p.theta),
        lambda r: r.linearize(p.theta).hvp(p.theta),
    ):
        torch.testing.assert_close(ask(part), ask(expected))
    assert examples.reads == before + len(CHOSEN)


def test_of_no_examples():
    with pytest.raises(ValueError, match=r"at least one example\. Got none"):
        whole().subset(CHOSEN[:0])


@pytest.mark.parametrize("streamed", [False, True])
def test_integers_of_any_kind_and_no_mask(streamed):
    """A mask is as long as the data: the mean would be over all, in part of none."""
    p = problem("mlp")
    risk, right = whole(), whole().batch_gradient(p.theta, CHOSEN)
    if streamed:
        examples = data.TensorDataset(p.X, p.y)
        risk = EmpiricalRisk(p.module, p.case.loss, examples, sample_weight=WEIGHTS)
    for same in (CHOSEN.tolist(), CHOSEN.numpy(), CHOSEN.to(torch.uint8)):
        torch.testing.assert_close(risk.batch_gradient(p.theta, same), right)
        torch.testing.assert_close(risk.subset(same).gradient(p.theta), right)
    mask = torch.arange(len(p.X)) < 2
    for wrong in (mask, mask.double(), CHOSEN[None]):
        for ask in (risk.subset, lambda i: risk.batch_gradient(p.theta, i)):
            with pytest.raises(
                (TypeError, ValueError), match=r"indices must (be int|have)"
            ):
                ask(wrong)
    with pytest.raises(ValueError, match="batches must have 2 axes"):
        risk.batch_gradients(p.theta, CHOSEN)
