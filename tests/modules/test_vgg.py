"""The VGG11 network of the CIFAR-10 experiments."""

import pytest
import torch
from torch import nn

from flatmin.modules import VGG11


def n_params(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def narrow():
    """A network of an eighth of the width: the same layers at little cost."""
    return VGG11(width=0.125)


def test_it_has_the_papers_9750922_parameters():
    net = VGG11()
    convolutions = [n_params(m) for m in net.features if isinstance(m, nn.Conv2d)]
    linear = [n_params(m) for m in net.classifier if isinstance(m, nn.Linear)]
    assert (len(convolutions), len(linear)) == (8, 3)
    assert sum(convolutions) == 9_220_480
    assert linear == [262_656, 262_656, 5130]
    assert n_params(net) == 9_750_922


def test_it_has_no_parameters_or_buffers_of_any_other_layer(narrow):
    kinds = {type(layer) for layer in narrow.modules()} - {VGG11, nn.Sequential}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Linear}
    assert list(narrow.buffers()) == []


# Counted from the list of channels: 9 in out + out a convolution, in out + out a layer.
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"width": 0.25}, 611_434),
        ({"width": 1e-9}, (28 + 7 * 10) + (2 + 2 + 20)),
        ({"width": 0.25, "in_channels": 1}, 611_434 - 2 * 9 * 16),
        ({"width": 0.25, "n_outputs": 1}, 611_434 - 9 * 129),
    ],
)
def test_parameter_counts(arguments, count):
    assert n_params(VGG11(**arguments)) == count


def test_channels_are_rounded():
    net = VGG11(width=0.1)
    channels = [m.out_channels for m in net.features if isinstance(m, nn.Conv2d)]
    assert channels == [6, 13, 26, 26, 51, 51, 51, 51]


def test_forward_is_configuration_a(narrow):
    conv = [m for m in narrow.features if isinstance(m, nn.Conv2d)]
    fc = [m for m in narrow.classifier if isinstance(m, nn.Linear)]
    assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) for m in conv)
    X = torch.rand(4, 3, 32, 32)
    hidden = X
    for stage in [conv[:1], conv[1:2], conv[2:4], conv[4:6], conv[6:]]:
        for layer in stage:
            hidden = torch.relu(layer(hidden))
        hidden = torch.max_pool2d(hidden, 2)
    assert hidden.shape == (4, 64, 1, 1)
    hidden = torch.relu(fc[1](torch.relu(fc[0](hidden.flatten(1)))))
    outputs = narrow(X)
    assert outputs.shape == (4, 10)
    torch.testing.assert_close(outputs, fc[2](hidden))


def test_every_parameter_has_a_gradient(narrow):
    X, y = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    nn.functional.cross_entropy(narrow(X), y).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in narrow.parameters())


def test_training_mode_draws_nothing(narrow):
    X = torch.rand(2, 3, 32, 32)
    assert torch.equal(narrow.train()(X), narrow.train()(X))
    assert torch.equal(narrow.train()(X), narrow.eval()(X))


def test_channels_last_gives_the_same_outputs_and_gradients():
    net = VGG11(width=0.125).double()
    X = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    expected = net(X)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()

    net = net.to(memory_format=torch.channels_last)
    outputs = net(X.to(memory_format=torch.channels_last))
    outputs.sum().backward()

    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close([p.grad for p in net.parameters()], gradients)


def test_rows_give_the_outputs_of_their_images(narrow):
    X = torch.rand(4, 3, 32, 32)
    assert torch.equal(narrow(X.flatten(1)), narrow(X))


def test_an_empty_batch_gives_no_outputs(narrow):
    assert narrow(torch.zeros(0, 3, 32, 32)).shape == (0, 10)


@pytest.mark.parametrize(
    "shape", [(3072,), (3, 32, 32), (4, 1, 32, 32), (4, 3, 28, 28), (4, 3071)]
)
def test_other_shapes_are_refused(narrow, shape):
    match = (
        r"in_channels=3\) .* shape \(3, 32, 32\) or \(3072,\). Got X of shape "
        + str(shape).replace("(", r"\(").replace(")", r"\)")
        + "; reshape X"
    )
    with pytest.raises(ValueError, match=match):
        narrow(torch.zeros(shape))


@pytest.mark.parametrize("name", ["n_outputs", "in_channels"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        VGG11(**{name: 0})


def test_width_must_be_a_positive_number():
    with pytest.raises(ValueError, match="width must be a finite number above 0"):
        VGG11(width=0)
    with pytest.raises(ValueError, match="width must be a finite number above 0"):
        VGG11(width="1")


def test_vmap_over_examples_agrees_with_the_batch():
    net = VGG11(width=0.125).double()
    X = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    outputs = torch.func.vmap(lambda x: net(x.unsqueeze(0)).squeeze(0))(X)
    torch.testing.assert_close(outputs, net(X))
