"""What a risk is asked about: directions, indices and points that do not fit."""

import numpy as np
import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk

N, D = 5, 8
X = torch.linspace(-1, 1, 3 * N, dtype=torch.float64).view(N, 3)
LABELS = torch.tensor([0, 1, 1, 0, 1])


def make(loss="cross_entropy", X=X, y=LABELS, **options):
    torch.manual_seed(0)
    return EmpiricalRisk(nn.Linear(3, 2).double(), loss, X, y, **options)


THETA = torch.linspace(-1, 1, D, dtype=torch.float64)
PRODUCTS = ["hvp", "ggn", "jvp", "directional_derivatives"]


@pytest.mark.parametrize("bad", [1.0, None, "a", [1.0] * D, np.ones(D)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_direction_is_a_tensor(name, bad):
    with pytest.raises(TypeError, match="v must be a Tensor of real numbers"):
        getattr(make().linearize(THETA), name)(bad)


@pytest.mark.parametrize("shape", [(), (1,), (1, D), (D, 1), (D + 1,)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_direction_is_not_broadcast(name, shape):
    with pytest.raises(ValueError, match=rf"v must have shape \({D},\)"):
        getattr(make().linearize(THETA), name)(torch.ones(shape))


def test_a_cotangent_is_not_broadcast():
    with pytest.raises(ValueError, match=r"u must have shape \(5, 2\). Got \(1, 2\)"):
        make().linearize(THETA).vjp(torch.ones(1, 2))


def test_integers_as_weights_of_gradients_keep_float64():
    risk, v = make(), torch.tensor([1, -1, 2, 0, 3])
    rows = torch.cat(list(risk.per_example_gradients(THETA)))
    found = risk.weighted_gradient(THETA, v)
    torch.testing.assert_close(found, v.double() @ rows / N, rtol=1e-13, atol=1e-15)


MASK = torch.tensor([True, False, True, False, False])


@pytest.mark.parametrize("bad", [MASK, torch.ones(2), "a", None])
def test_what_are_no_indices(bad):
    risk = make()
    for ask in (risk.subset, lambda i: risk.batch_gradient(THETA, i)):
        with pytest.raises(TypeError, match="indices must be integers"):
            ask(bad)


def test_uint8_is_no_mask():
    risk, indices = make(), torch.tensor([1, 0, 1, 1, 0])
    found = risk.batch_gradient(THETA, indices.to(torch.uint8))
    assert torch.equal(found, risk.batch_gradient(THETA, indices))


def test_a_theta_with_infinite_outputs_is_forgotten():
    risk, v = make(), torch.ones(D, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="outputs at θ must be finite"):
        risk.linearize(torch.full_like(THETA, 1e308)).hvp(v)
    found = risk.linearize(THETA).hvp(v)
    torch.testing.assert_close(found, make().linearize(THETA).hvp(v))


def test_a_theta_that_is_not_finite_is_forgotten():
    risk, v = make(), torch.ones(D, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="θ must be finite"):
        risk.linearize(THETA * torch.nan).hvp(v)
    with pytest.raises(FloatingPointError, match="θ must be finite"):
        risk.linearize(THETA * torch.nan).jvp(v)
    f = (X @ THETA[:6].view(2, 3).T + THETA[6:]).softmax(1)
    along = X @ v[:6].view(2, 3).T + v[6:]
    torch.testing.assert_close(risk.linearize(THETA).jvp(v), along)
    slopes = f * along - f * (f * along).sum(1, keepdim=True)
    right = torch.cat([(slopes.T @ X).flatten(), slopes.sum(0)]) / N
    torch.testing.assert_close(risk.linearize(THETA).hvp(v), right)


def test_a_complex_theta_is_refused():
    with pytest.raises(TypeError, match="θ must hold real"):
        make().value(THETA.to(torch.complex128))


@pytest.mark.parametrize("name", ["X", "y"])
def test_numbers_too_large_for_float32(name):
    data = {"X": X.clone(), "y": X[:, :2].clone()}
    data[name][1, 1] = 1e39
    with pytest.raises(ValueError, match=f"{name} must fit into torch.float32"):
        make("squared_error", **data, dtype="float32")


def test_rows_of_several_lengths():
    with pytest.raises(TypeError, match="X must be an array of numbers"):
        make(X=[[1.0], [2.0, 3.0]])


def test_an_index_beyond_the_table_in_a_later_example():
    words = nn.Sequential(nn.Embedding(4, 2), nn.Flatten())
    with pytest.raises(ValueError, match="cannot take all examples of X"):
        EmpiricalRisk(words, "cross_entropy", [[0], [4]], [0, 1])


def test_images_channels_last_for_a_module_that_needs_rows():
    class Rows(nn.Module):
        def forward(self, X):
            return X.view(len(X), -1)

    images = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 2, 3, 4)
    module = nn.Sequential(nn.Conv2d(2, 2, 1), Rows(), nn.Linear(24, 2)).double()
    strided = images.to(memory_format=torch.channels_last)
    found, right = (
        EmpiricalRisk(module, "cross_entropy", X, [0, 1]) for X in (strided, images)
    )
    theta = torch.linspace(-1, 1, right.n_params, dtype=torch.float64)
    assert torch.equal(found.gradient(theta), right.gradient(theta))


@pytest.mark.parametrize("scale", [1e-321, 1e307])
def test_weights_at_the_ends_of_float64(scale):
    weights = scale * np.array([1.0, 2, 3, 4, 5])
    found = make(sample_weight=weights).gradient(THETA)
    right = make(sample_weight=weights / weights.max()).gradient(THETA)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=0)


def test_a_chunk_size_of_numpy():
    batches = torch.tensor([[0], [3], [4]])
    found = make(chunk_size=np.int64(2)).batch_gradients(THETA, batches)
    assert torch.equal(found, make(chunk_size=2).batch_gradients(THETA, batches))
