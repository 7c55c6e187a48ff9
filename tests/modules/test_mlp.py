"""The multi-layer perceptron and the networks of appendix A."""

import numpy as np
import pytest
import torch
from torch import nn

from flatmin.modules import MLP, cubic_regression_mlp

FUNCTIONS = {
    "identity": lambda a: a,
    "logistic": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0),
    "tanh": np.tanh,
}


def n_params(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_forward_is_the_formula_of_the_docstring(activation):
    mlp = MLP(6, 2, hidden_layer_sizes=(5, 4), activation=activation).double()
    X = torch.randn(7, 1, 2, 3, dtype=torch.float64)
    W0, b0, W1, b1, W2, b2 = (p.detach().numpy() for p in mlp.parameters())
    a = FUNCTIONS[activation]

    hidden = a(W1 @ a(W0 @ X.numpy().reshape(7, 6).T + b0[:, None]) + b1[:, None])

    expected = (W2 @ hidden + b2[:, None]).T
    np.testing.assert_allclose(mlp(X).detach().numpy(), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("hidden_layer_sizes", "shapes"),
    [
        ((), [(2, 3)]),
        (4, [(4, 3), (2, 4)]),
        ([4], [(4, 3), (2, 4)]),
        (np.array([5, 4]), [(5, 3), (4, 5), (2, 4)]),
    ],
)
def test_hidden_layer_sizes(hidden_layer_sizes, shapes):
    mlp = MLP(3, 2, hidden_layer_sizes=hidden_layer_sizes)
    assert [tuple(p.shape) for p in mlp.parameters() if p.ndim == 2] == shapes


def test_default_has_one_hidden_layer_of_100_units_and_relu():
    mlp = MLP(64, 10)
    assert n_params(mlp) == 64 * 100 + 100 + 100 * 10 + 10
    assert [type(layer) for layer in mlp.layers] == [nn.Linear, nn.ReLU, nn.Linear]


def test_initialisation_is_pytorchs():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mlp = MLP(3, 1, hidden_layer_sizes=(4,))
        torch.manual_seed(3)
        first, last = nn.Linear(3, 4), nn.Linear(4, 1)
    expected = [first.weight, first.bias, last.weight, last.bias]
    for parameter, reference in zip(mlp.parameters(), expected, strict=True):
        assert torch.equal(parameter, reference)


@pytest.mark.parametrize("shape", [(6,), (4, 5), (4, 1, 2, 4)])
def test_input_of_another_size_is_refused(shape):
    mlp = MLP(6, 1, hidden_layer_sizes=(2,))
    with pytest.raises(ValueError, match=r"n_features=6 .* Got shape \(.*reshape X"):
        mlp(torch.zeros(shape))


def test_a_vector_is_not_taken_for_a_batch_of_single_features():
    with pytest.raises(ValueError, match=r"Got shape \(5,\)"):
        cubic_regression_mlp()(torch.zeros(5))


def test_unknown_activation_lists_the_choices():
    match = r"one of \['identity', 'logistic', 'relu', 'tanh'\]. Got 'swish' instead"
    with pytest.raises(ValueError, match=match):
        MLP(3, 1, activation="swish")


@pytest.mark.parametrize(
    ("sizes", "hidden_layer_sizes", "name"),
    [
        ((0, 1), (3,), "n_features"),
        ((3, 0), (3,), "n_outputs"),
        ((3, 1), (3, 0), "hidden_layer_sizes"),
    ],
)
def test_sizes_must_be_positive(sizes, hidden_layer_sizes, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        MLP(*sizes, hidden_layer_sizes=hidden_layer_sizes)


def test_sizes_must_be_integers():
    with pytest.raises(ValueError, match="hidden_layer_sizes must be an integer"):
        MLP(3, 1, hidden_layer_sizes=(2.5,))


@pytest.mark.parametrize(
    ("size", "widths"),
    [(251, [1, 10, 10, 10, 1]), (141, [1, 10, 10, 1]), (103, [1, 6, 6, 6, 1])],
)
def test_networks_of_appendix_a(size, widths):
    mlp = cubic_regression_mlp(size)
    linear = [layer for layer in mlp.layers if isinstance(layer, nn.Linear)]
    between = [layer for layer in mlp.layers if not isinstance(layer, nn.Linear)]
    assert n_params(mlp) == size
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
    assert all(isinstance(layer, nn.ReLU) for layer in between)


def test_the_network_of_the_main_text_is_the_default():
    assert n_params(cubic_regression_mlp()) == 251


def test_unknown_network_lists_the_choices():
    match = r"one of \[103, 141, 251\]. Got 250 instead; use MLP"
    with pytest.raises(ValueError, match=match):
        cubic_regression_mlp(250)


def test_vmap_over_examples_agrees_with_the_batch():
    mlp = MLP(6, 2, hidden_layer_sizes=(5,))
    X = torch.randn(4, 2, 3)
    outputs = torch.func.vmap(lambda x: mlp(x.unsqueeze(0)).squeeze(0))(X)
    torch.testing.assert_close(outputs, mlp(X))
