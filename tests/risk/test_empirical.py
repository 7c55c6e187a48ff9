"""Every word of a network's risk against dense float64 autograd."""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from flatmin.risk import EmpiricalRisk

from .. import oracles
from ._cases import CASES, SINGLE, WEIGHTS, N, make_risk, oracle, problem

pytestmark = pytest.mark.filterwarnings("ignore:The loss does not depend")

# Whole, and in chunks of 3, 3 and 1.
VARIANTS = [(None, False), (3, True)]


@pytest.fixture(params=CASES)
def name(request):
    """A case; parametrised anew where some will do."""
    return request.param


@pytest.fixture(params=VARIANTS, ids=lambda v: f"chunk={v[0]},weights={v[1]}")
def variant(request):
    return request.param


@pytest.fixture
def pair(name, variant):
    """The same risk twice: flatmin's and the oracle's."""
    chunk_size, weighted = variant
    return make_risk(name, chunk_size, weighted), oracle(name, weighted=weighted)


@pytest.fixture
def theta(name):
    return problem(name).theta


@pytest.fixture
def direction(theta):
    return torch.randn(len(theta), generator=seeded(1), dtype=theta.dtype)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def close(actual, expected, rtol=1e-9):
    """Compare by the size of the whole: a zero entry has no digits of its own."""
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    error = torch.linalg.vector_norm(actual.double() - expected)
    assert error <= rtol * torch.linalg.vector_norm(expected) + 1e-14, float(error)


def test_value(pair, theta):
    risk, expected = pair
    close(risk.value(theta), expected.value)
    close(risk.losses_at(torch.stack([theta, theta])), expected.value.expand(2))


def test_outputs(pair, theta):
    risk, expected = pair
    close(risk.outputs(theta), expected.outputs)
    assert risk.output_shape == expected.outputs.shape[1:]


def test_gradient(pair, theta):
    risk, expected = pair
    value, gradient = risk.value_and_gradient(theta)
    close(value, expected.value)
    close(gradient, expected.gradient)
    close(risk.gradient(theta), expected.gradient)


def test_weights_are_not_normalised(pair, theta):
    risk, expected = pair
    v = torch.randn(N, generator=seeded(2), dtype=theta.dtype)
    value, gradient = risk.value_and_noisy_gradient(theta, v)
    close(value, expected.value)
    close(gradient, expected.gradient + v @ expected.gradients / N)
    close(risk.weighted_gradient(theta, 2 * v), 2 * v @ expected.gradients / N)


def test_batch_gradient_is_a_plain_mean(pair, theta):
    risk, expected = pair
    indices = torch.tensor([4, 0, 2, 4])  # an example may come twice
    value, gradient = risk.value_and_batch_gradient(theta, indices)
    close(value, expected.losses[indices].mean())
    close(gradient, expected.gradients[indices].mean(0))
    close(risk.batch_gradient(theta, indices), gradient)
    batches = torch.tensor([[0, 1], [5, 6], [3, 3]])
    close(risk.batch_gradients(theta, batches), expected.gradients[batches].mean(1))


def test_per_example_gradients(pair, theta):
    risk, expected = pair
    close(torch.cat(list(risk.per_example_gradients(theta))), expected.gradients)


def test_squares(pair, theta):
    risk, expected = pair
    rows = expected.gradients
    norms, sums = risk.squared_norms(theta), risk.squared_gradient_sum(theta)
    assert norms.dtype == sums.dtype == torch.float64
    close(norms, rows.square().sum(1))
    close(sums, rows.square().sum(0))
    value, gradient, variances = risk.value_gradient_and_variances(theta)
    assert variances.dtype == torch.float64
    close(value, risk.value(theta))
    close(gradient, risk.gradient(theta))
    close(variances, expected.covariance.diagonal())


def test_directional_derivatives(pair, theta, direction):
    risk, expected = pair
    close(
        risk.linearize(theta).directional_derivatives(direction),
        expected.gradients @ direction,
    )


def test_hessian_products(pair, theta, direction):
    risk, expected = pair
    point = risk.linearize(theta)
    for v in (direction, direction.roll(1), direction):
        close(point.hvp(v), expected.hessian @ v)


def test_gauss_newton_products(pair, theta, direction):
    risk, expected = pair
    point = risk.linearize(theta)
    for v in (direction, direction.roll(1), direction):
        close(point.ggn(v), expected.gauss_newton @ v)
    close(risk.linearize(theta).ggn(direction), expected.gauss_newton @ direction)


def test_jacobian_products(pair, theta, direction):
    risk, expected = pair
    Jv = (expected.jacobians @ direction).view(expected.outputs.shape)
    u = torch.randn(Jv.shape, generator=seeded(3), dtype=theta.dtype)
    Ju = torch.einsum("nc,ncp->p", u.reshape(N, -1), expected.jacobians)
    point = risk.linearize(theta)
    for _ in range(2):
        close(point.jvp(direction), Jv)
        close(point.vjp(u), Ju)
    close(risk.linearize(theta).jvp(direction), Jv)
    close(risk.vjp(theta, u), Ju)


def test_gauss_newton_draw_has_covariance_g(pair, theta, monkeypatch):
    # The draw is affine in its normal z: unit vectors in place of z give every column
    # of the matrix B with BBᵀ = G.
    risk, expected = pair
    shape = expected.outputs.shape
    draw = risk.value_and_gauss_newton_draw
    columns, real = [], torch.randn
    for unit in torch.eye(shape.numel(), dtype=theta.dtype):
        unit = unit.view(shape)

        def randn(s, z=unit, **options):  # trials of the loss draw, too
            return z if tuple(s) == z.shape else real(s, **options)

        monkeypatch.setattr(torch, "randn", randn)
        value, gradient = draw(theta, torch.tensor(0.5, dtype=theta.dtype), seeded(0))
        close(value, expected.value)
        columns.append((gradient - expected.gradient) / 0.5)
    B = torch.stack(columns, dim=1)
    close(B @ B.T, expected.gauss_newton)


def test_gauss_newton_traces_have_the_mean_tr_g(pair, theta, monkeypatch):
    # Over the rows of a Hadamard matrix the mean of zzᵀ is the identity, as over all
    # signs, so that the mean of the estimates is the trace without any noise.
    risk, expected = pair
    shape = expected.outputs.shape[1:]
    order = 1 << (max(1, shape.numel()) - 1).bit_length()
    estimates = []
    for signs in torch.as_tensor(hadamard(order))[:, : shape.numel()]:
        bits = ((signs + 1) // 2).view(shape)
        monkeypatch.setattr(torch, "randint", lambda *a, b=bits, **_: b.expand(a[2]))
        estimates.append(risk.gauss_newton_traces(theta, seeded(0)))
    traces = expected.gauss_newtons.diagonal(dim1=1, dim2=2).sum(1)
    assert estimates[0].dtype == torch.float64
    close(torch.stack(estimates).mean(0), traces)
    assert risk.n_outputs == shape.numel()
    close(risk.gauss_newton_traces(theta), traces)


@pytest.mark.parametrize("name", SINGLE)
def test_single_precision(name):
    p, expected = problem(name, torch.float32), oracle(name, weighted=True)
    risk = p.risk(chunk_size=3, sample_weight=WEIGHTS)
    v = torch.randn(len(p.theta), generator=seeded(1))
    point = risk.linearize(p.theta)
    for actual, exact in [
        (risk.value(p.theta), expected.value),
        (risk.gradient(p.theta), expected.gradient),
        (torch.cat(list(risk.per_example_gradients(p.theta))), expected.gradients),
        (point.hvp(v), expected.hessian @ v.double()),
        (point.hvp(v), expected.hessian @ v.double()),
        (point.ggn(v), expected.gauss_newton @ v.double()),
        (point.directional_derivatives(v), expected.gradients @ v.double()),
    ]:
        assert actual.dtype == torch.float32
        close(actual, exact, rtol=2e-5)


@pytest.mark.parametrize("name", SINGLE)
def test_a_float32_module_in_float64(name):
    p = problem(name, torch.float32)
    risk = p.risk(dtype="float64")
    theta = problem(name).theta
    assert risk.params().dtype == risk.value(theta).dtype == torch.float64
    close(risk.gradient(theta), oracle(name).gradient)


def test_answers_do_not_depend_on_what_was_asked_before(name, theta, direction):
    """Go to and fro between points, as LSTM's cached weights would not survive."""
    risk, expected = make_risk(name, 3), oracle(name)
    elsewhere = theta + 0.1 * direction
    for _ in range(2):
        close(risk.value(theta), expected.value)
        far = risk.linearize(elsewhere)
        far.hvp(direction)
        close(risk.gradient(theta), expected.gradient)
        near = risk.linearize(theta)
        risk.gradient(elsewhere)
        far.ggn(direction)
        close(near.hvp(direction), expected.hessian @ direction)
        rows = []
        for part in risk.per_example_gradients(theta):
            risk.value(elsewhere)
            rows.append(part)
        close(torch.cat(rows), expected.gradients)
        risk.squared_norms(elsewhere)
        close(near.directional_derivatives(direction), expected.gradients @ direction)


def test_hessian_is_symmetric_and_the_slope_of_the_gradient(name, theta, direction):
    # Differences know nothing of second derivatives, which some kernels have wrong.
    risk = make_risk(name)
    point, other = risk.linearize(theta), direction.roll(1)
    Hv = point.hvp(direction)
    asymmetry = other @ Hv - direction @ point.hvp(other)
    assert asymmetry.abs() <= 1e-13 * other.norm() * Hv.norm()
    # Not along the padding of an embedding, by which torch does not differentiate.
    v = torch.where(oracle(name).gradient != 0, direction, 0)
    step = 1e-5 * v
    difference = (risk.gradient(theta + step) - risk.gradient(theta - step)) / 2e-5
    close(point.hvp(v), difference, rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, 6, 7, 100])
@pytest.mark.parametrize("name", ["mlp", "image to image"])
def test_chunk_size_does_not_matter(name, chunk_size, weighted, theta, direction):
    risk, whole = make_risk(name, chunk_size, weighted), make_risk(name, None, weighted)
    assert risk.chunk_size == min(chunk_size, N)
    u = whole.outputs(theta)
    for ask in (
        lambda r: r.value(theta),
        lambda r: r.outputs(theta),
        lambda r: r.gradient(theta),
        lambda r: r.batch_gradient(theta, torch.arange(1, 6)),
        lambda r: torch.cat(list(r.per_example_gradients(theta))),
        lambda r: r.squared_norms(theta),
        lambda r: r.squared_gradient_sum(theta),
        lambda r: r.gradient_variances(theta),
        lambda r: r.linearize(theta).directional_derivatives(direction),
        lambda r: r.linearize(theta).hvp(direction),
        lambda r: r.linearize(theta).ggn(direction),
        lambda r: r.linearize(theta).jvp(direction),
        lambda r: r.vjp(theta, u),
        # One seed gives one draw, in whatever chunks.
        lambda r: r.value_and_gauss_newton_draw(theta, theta[0].abs(), seeded(0))[1],
        lambda r: r.gauss_newton_traces(theta, seeded(0)),
    ):
        close(ask(risk), ask(whole), rtol=1e-12)


def test_everything_at_once_leaves_the_module_alone(name, theta, direction):
    p = problem(name)
    for parameter in p.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 3.0)
    X, y = p.X.clone(), p.y.clone()
    with oracles.untouched(p.module):
        risk = p.risk(chunk_size=3)
        rng = seeded(0)
        risk.value(theta)
        risk.outputs(theta)
        risk.gradient(theta)
        risk.batch_gradient(theta, torch.tensor([0, 1]))
        risk.squared_norms(theta)
        risk.squared_gradient_sum(theta)
        risk.linearize(theta).directional_derivatives(direction)
        risk.gauss_newton_traces(theta, rng)
        risk.value_and_gauss_newton_draw(theta, torch.ones_like(theta[0]), rng)
        point = risk.linearize(theta)
        point.hvp(direction)
        point.ggn(direction)
        point.vjp(point.jvp(direction))
        assert not p.module.training or p.case.train
    assert torch.equal(p.X, X)
    assert torch.equal(p.y, y)
    for parameter in p.module.parameters():
        parameter.grad = None


def test_params_are_the_modules_own(name):
    p = problem(name)
    risk = p.risk()
    theta = risk.params()
    assert torch.equal(theta, oracles.flat_parameters(p.module))
    assert risk.n_params == len(theta) == sum(risk.layout.sizes)
    assert risk.n_examples == N
    theta.zero_()  # a copy
    assert not torch.equal(theta, risk.params())


# The rest needs one network only.


@pytest.fixture
def small():
    return problem("mlp")


def test_θ_may_require_a_gradient_and_the_caller_may_have_none(small):
    risk, expected = small.risk(), oracle("mlp")
    theta = small.theta.clone().requires_grad_()
    v = torch.ones_like(small.theta)
    with torch.no_grad():
        answers = [
            risk.gradient(theta),
            risk.linearize(theta).hvp(v),
            risk.linearize(theta).ggn(v),
            risk.linearize(theta).directional_derivatives(v),
            risk.squared_norms(theta),
            risk.value_and_gauss_newton_draw(theta, v[0], seeded(0))[1],
        ]
        small.risk()
    close(answers[0], expected.gradient)
    close(answers[1], expected.hessian @ v)
    close(answers[2], expected.gauss_newton @ v)
    close(answers[3], expected.gradients @ v)
    close(answers[4], expected.gradients.square().sum(1))
    assert not any(a.requires_grad for a in answers)
    assert not next(risk.per_example_gradients(theta)).requires_grad


def test_θ_of_another_dtype_is_converted(small):
    risk = problem("mlp", torch.float32).risk()
    theta = small.theta
    v = torch.ones(len(theta))
    for answer in (
        risk.gradient(theta),
        risk.linearize(theta).hvp(v),
        next(risk.per_example_gradients(theta)),
    ):
        assert answer.dtype == torch.float32


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize(
    ("loss", "name", "options"),
    [
        (nn.CrossEntropyLoss, "mlp", {}),
        (nn.MSELoss, "mlp, two outputs", {}),
        (nn.BCEWithLogitsLoss, "mlp, labels of two kinds", {}),
        (nn.HuberLoss, "mlp, Huber", {"delta": 10.0}),
    ],
)
def test_reduction_does_not_matter(loss, name, options, reduction):
    p, expected = problem(name), oracle(name)
    y = p.y.double() if loss is nn.BCEWithLogitsLoss else p.y
    module = loss(reduction=reduction, **options)
    risk = EmpiricalRisk(p.module, module, p.X, y)
    close(risk.gradient(p.theta), expected.gradient)
    v = torch.ones_like(p.theta)
    close(risk.linearize(p.theta).ggn(v), expected.gauss_newton @ v)
    assert module.reduction == reduction


def test_a_loss_class_is_as_good_as_a_loss(small):
    risk = EmpiricalRisk(small.module, nn.CrossEntropyLoss, small.X, small.y)
    close(risk.value(small.theta), oracle("mlp").value)


def test_equal_weights_are_none(small):
    risk = small.risk(sample_weight=np.full(N, 0.3))
    assert torch.equal(risk.gradient(small.theta), small.risk().gradient(small.theta))


def test_the_size_of_weights_does_not_matter(small):
    a = small.risk(sample_weight=WEIGHTS).gradient(small.theta)
    b = small.risk(sample_weight=1e-6 * WEIGHTS).gradient(small.theta)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_zero_weight_removes_an_example(small):
    kept = WEIGHTS > 0
    whole = small.risk(sample_weight=WEIGHTS)
    part = EmpiricalRisk(
        small.module,
        "cross_entropy",
        small.X[kept],
        small.y[kept],
        sample_weight=WEIGHTS[kept],
    )
    close(whole.gradient(small.theta), part.gradient(small.theta))


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.numpy,
        lambda t: read_only(t.numpy()),
        lambda t: np.asfortranarray(t.numpy()),
        lambda t: t.numpy()[::-1].copy()[::-1],
        torch.Tensor.tolist,
        lambda t: t.clone().requires_grad_(t.is_floating_point()),
    ],
    ids=["numpy", "read-only", "Fortran", "reversed", "lists", "with gradient"],
)
def test_data_may_come_as(convert, small):
    risk = EmpiricalRisk(
        small.module, "cross_entropy", convert(small.X), convert(small.y)
    )
    close(risk.gradient(small.theta), oracle("mlp").gradient)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_tokens_may_be_integers_of_any_kind(dtype):
    p = problem("embedding")
    risk = EmpiricalRisk(p.module, "cross_entropy", p.X.to(dtype), p.y)
    close(risk.gradient(p.theta), oracle("embedding").gradient)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def test_images_lie_channels_last_where_the_module_can_take_it():
    def images(name):
        return problem(name).risk()._data.X

    assert images("convolutional, one channel").stride() == (25, 1, 5, 1)
    assert images("image to image").stride() == (32, 1, 8, 2)
    assert images("convolutional").is_contiguous()  # view() behind it


def test_a_module_that_vmap_takes_is_vectorised():
    for name in ("mlp", "convolutional", "embedding", "transformer", "weight norm"):
        risk = problem(name).risk()
        # As if one of its layers had no rows of its own.
        risk._sums.choice.give_up("by layer", "for a test")
        next(risk.per_example_gradients(problem(name).theta))
        assert risk.paths["per-example sums"] == "reference: for a test", name


def test_a_wrong_θ_does_not_switch_vectorisation_off(small):
    risk = small.risk()
    with pytest.raises(ValueError, match="θ must have shape"):
        next(risk.per_example_gradients(small.theta[1:]))
    assert "per-example sums" not in risk.paths


def test_out_of_memory_is_not_mistaken_for_a_module_that_vmap_cannot_take(
    small, monkeypatch
):
    def fail(*_args, **_kwargs):
        raise torch.OutOfMemoryError("too much")

    risk = small.risk()
    risk._sums.choice.give_up("by layer", "for a test")
    monkeypatch.setattr("flatmin.risk.example_sums.per_example.vectorize", fail)
    with pytest.raises(torch.OutOfMemoryError):
        next(risk.per_example_gradients(small.theta))
    assert risk.paths["per-example sums"] == "reference: for a test"


def test_real_draws_have_mean_g0_and_covariance_g():
    """Judged by their own standard errors."""
    p, expected = problem("mlp, one logit"), oracle("mlp, one logit")
    risk, rng = p.risk(), seeded(0)
    scale = torch.tensor(2.0, dtype=torch.float64)
    draws = torch.stack(
        [risk.value_and_gauss_newton_draw(p.theta, scale, rng)[1] for _ in range(1000)]
    )
    noise = (draws - expected.gradient) / scale
    z = noise.mean(0) / (noise.std(0) / len(noise) ** 0.5)
    assert z.abs().max() < 4.5
    for a, b in itertools.pairwise(torch.eye(len(p.theta), dtype=torch.float64)[::5]):
        products = (noise @ a) * (noise @ b)
        error = products.mean() - a @ expected.gauss_newton @ b
        assert error.abs() < 4.5 * products.std() / len(products) ** 0.5


def test_a_callable_loss_leaves_the_rows_vectorised():
    def huber(outputs, targets):
        return nn.functional.huber_loss(outputs, targets, reduction="none").mean(1)

    X, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    risk = EmpiricalRisk(nn.Linear(3, 2).double(), huber, X, y)
    risk._sums.choice.give_up("by layer", "for a test")
    risk.gauss_newton_traces(risk.params())
    assert risk.paths["per-example sums"] == "reference: for a test"
