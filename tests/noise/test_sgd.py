"""The minibatches of sgd: which examples, what loss, when an epoch ends."""

import pytest
import torch

from flatmin.noise import make_noise_law
from flatmin.risk import QuadraticRisk

from ._problems import generator, problem


class Recorder(QuadraticRisk):
    """Notes the examples of every minibatch."""

    def __init__(self, n):
        super().__init__(torch.eye(2), torch.arange(2.0 * n).view(n, 2))
        self.batches = []

    def value_and_batch_gradient(self, theta, indices):
        self.batches.append(indices)
        return super().value_and_batch_gradient(theta, indices)


def run(law, n, n_iter, chains=(), previous=None, rng=None):
    """Return the batches of some iterations, (n_iter, *chains, m), and the state."""
    risk, theta = Recorder(n), torch.zeros(*chains, 2)
    rng = generator() if rng is None else rng
    state = previous
    for _ in range(n_iter):
        state = law.refresh(risk, theta, rng, state)
        law.noisy_gradient(risk, theta, state, rng)
    return torch.stack(risk.batches), state


def n_distinct(indices):
    return len(indices.flatten().unique())


DRAWN = {
    "replacement": lambda shape, n, rng: torch.randint(n, (*shape, 3), generator=rng),
    "without_replacement": lambda shape, n, rng: (
        torch.rand((*shape, n), generator=rng).topk(3).indices
    ),
    "epoch": lambda shape, n, rng: torch.rand((*shape, n), generator=rng).argsort(-1)[
        ..., :3
    ],
}


@pytest.mark.parametrize("name", ["mlp", "ragged", "regression_chains"])
@pytest.mark.parametrize("noise_scale", [1.0, 2.5])
@pytest.mark.parametrize("sampling", DRAWN)
def test_loss_and_gradient_are_the_means_of_the_batch(sampling, noise_scale, name):
    case, rng = problem(name), generator()
    law = make_noise_law(
        "sgd", batch_size=3, noise_scale=noise_scale, sampling=sampling
    )
    state = law.refresh(case.risk, case.theta, rng)
    loss, gradient = law.noisy_gradient(case.risk, case.theta, state, rng)

    chains = case.theta.shape[:-1]
    batches = DRAWN[sampling](chains, case.risk.n_examples, generator()).view(-1, 3)
    pairs = list(zip(case.points, batches, strict=True))
    losses = torch.stack([p.losses[i].mean() for p, i in pairs])
    gradients = torch.stack([p.gradients[i].mean(0) for p, i in pairs])
    means = torch.stack([p.mean for p in case.points])
    noisy = means + noise_scale * (gradients - means)
    torch.testing.assert_close(loss, losses.view(chains))
    torch.testing.assert_close(gradient, noisy.view(case.theta.shape))


@pytest.mark.parametrize("n", [12, 13, 15])
@pytest.mark.parametrize("chains", [(), (2, 3)])
def test_an_epoch_shows_each_example_once_and_drops_the_ragged_rest(chains, n):
    law = make_noise_law("sgd", batch_size=4, sampling="epoch")
    per_epoch = n // 4
    batches, _ = run(law, n, 3 * per_epoch, chains)
    epochs = batches.unflatten(0, (3, per_epoch)).movedim(-1, 2)
    assert epochs.shape == (3, per_epoch, 4, *chains)
    for epoch in epochs.flatten(3).movedim(-1, 0) if chains else [epochs]:
        assert [n_distinct(one) for one in epoch] == [4 * per_epoch] * 3
    assert not torch.equal(epochs[0], epochs[1]), "each epoch is shuffled anew"


def test_a_refresh_keeps_the_place_in_the_epoch():
    law = make_noise_law("sgd", batch_size=4, sampling="epoch")
    rng = generator()
    first, state = run(law, 12, 2, rng=rng)
    second, _ = run(law, 12, 1, previous=state, rng=rng)
    assert n_distinct(torch.cat([first, second])) == 12
    assert run(law, 12, 1)[1].position == 4, "without a previous state: from the start"


@pytest.mark.parametrize("sampling", DRAWN)
def test_chains_have_batches_of_their_own(sampling):
    law = make_noise_law("sgd", batch_size=5, sampling=sampling)
    batches, _ = run(law, 50, 1, chains=(4,))
    assert n_distinct(batches) > 10


def test_an_example_comes_twice_only_with_replacement():
    def repeats(sampling):
        law = make_noise_law("sgd", batch_size=8, sampling=sampling)
        batches, _ = run(law, 9, 20)
        return any(n_distinct(batch) < 8 for batch in batches)

    assert repeats("replacement")
    assert not repeats("without_replacement")
    assert not repeats("epoch")


def test_a_batch_may_be_larger_than_the_data_with_replacement():
    law = make_noise_law("sgd", batch_size=30)
    law.check(Recorder(6))
    assert run(law, 6, 1)[0].shape == (1, 30)


@pytest.mark.parametrize("sampling", ["without_replacement", "epoch"])
def test_all_examples_at_once_are_gradient_descent(sampling):
    case = problem("regression_chains")
    law = make_noise_law("sgd", batch_size=13, sampling=sampling)
    law.check(case.risk)
    state = law.refresh(case.risk, case.theta, generator())
    _, gradient = law.noisy_gradient(case.risk, case.theta, state, generator())
    torch.testing.assert_close(gradient, case.risk.gradient(case.theta))
    assert law.trace(case.risk, case.theta, state).abs().max() == 0
