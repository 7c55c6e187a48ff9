"""The network of appendix C."""

import pytest
import torch
from torch import nn

from flatmin.modules import LeNet


def n_params(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_has_the_papers_11330_parameters():
    net = LeNet()
    layers = {name: n_params(layer) for name, layer in net.named_children()}
    assert layers == {"conv1": 260, "conv2": 2510, "fc1": 8050, "fc2": 510}
    assert n_params(net) == 11_330


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (6, 1, 28, 28)),
        ({"n_outputs": 3, "in_channels": 3, "image_size": 32}, (6, 3, 32, 32)),
        ({"image_size": 17}, (6, 1, 17, 17)),
    ],
)
def test_forward_is_the_chain_of_appendix_c(arguments, shape):
    net = LeNet(**arguments).double()
    chain = nn.Sequential(
        net.conv1,
        nn.MaxPool2d(2),
        nn.ReLU(),
        net.conv2,
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        net.fc1,
        nn.ReLU(),
        net.fc2,
    )
    X = torch.randn(shape, dtype=torch.float64)
    outputs = net(X)
    assert outputs.shape == (6, arguments.get("n_outputs", 10))
    torch.testing.assert_close(outputs, chain(X))


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 20)])
def test_rows_give_the_outputs_of_their_images(channels, size):
    net = LeNet(in_channels=channels, image_size=size)
    X = torch.randn(4, channels, size, size)
    assert torch.equal(net(X.flatten(1)), net(X))


def test_images_without_channel_axis_give_the_same_outputs():
    net = LeNet()
    X = torch.randn(4, 1, 28, 28)
    assert torch.equal(net(X.squeeze(1)), net(X))


@pytest.mark.parametrize("shape", [(0, 784), (0, 28, 28), (0, 1, 28, 28)])
def test_an_empty_batch_gives_no_outputs(shape):
    assert LeNet()(torch.zeros(shape)).shape == (0, 10)


@pytest.mark.parametrize("shape", [(784,), (28, 28), (4, 783), (4, 3, 28, 28)])
def test_other_shapes_are_refused(shape):
    match = (
        r"shape \(1, 28, 28\) or \(784,\) or \(28, 28\). Got X of shape "
        + str(shape).replace("(", r"\(").replace(")", r"\)")
        + "; reshape X"
    )
    with pytest.raises(ValueError, match=match):
        LeNet()(torch.zeros(shape))


def test_a_missing_channel_axis_is_refused_where_it_is_ambiguous():
    match = r"shape \(3, 28, 28\) or \(2352,\). Got X of shape \(3, 28, 28\)"
    with pytest.raises(ValueError, match=match):
        LeNet(in_channels=3)(torch.zeros(3, 28, 28))


def test_the_smallest_image_leaves_one_pixel():
    assert LeNet(image_size=16).fc1.in_features == 10
    with pytest.raises(
        ValueError, match="image_size must be an integer of at least 16"
    ):
        LeNet(image_size=15)


@pytest.mark.parametrize("name", ["n_outputs", "in_channels"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        LeNet(**{name: 0})


def test_initialisation_is_pytorchs():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = LeNet()
        torch.manual_seed(5)
        layers = [
            nn.Conv2d(1, 10, 5),
            nn.Conv2d(10, 10, 5),
            nn.Linear(160, 50),
            nn.Linear(50, 10),
        ]
    expected = [parameter for layer in layers for parameter in layer.parameters()]
    for parameter, reference in zip(net.parameters(), expected, strict=True):
        assert torch.equal(parameter, reference)


def test_vmap_over_examples_agrees_with_the_batch():
    net = LeNet()
    X = torch.randn(4, 784)
    outputs = torch.func.vmap(lambda x: net(x.unsqueeze(0)).squeeze(0))(X)
    torch.testing.assert_close(outputs, net(X), atol=1e-5, rtol=1e-4)
