"""An optimizer of one flat θ saves and loads as one of the parameters."""

import copy

import pytest
import torch
from torch import nn

from flatmin.dynamics import FlatBinding

from ._problems import network

KINDS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "plain": (torch.optim.SGD, {"lr": 0.1}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "nadam": (torch.optim.NAdam, {}),
    "asgd": (torch.optim.ASGD, {}),
    "rprop": (torch.optim.Rprop, {}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True}),
}


class Numbers(nn.Module):
    """Two parameters without axes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))


def steps(module, optimizer, n):
    """Go down the sum of fourth powers, by hand."""
    for _ in range(n):
        for p in module.parameters():
            p.grad.copy_(4 * p.detach() ** 3)
        optimizer.step()


@pytest.mark.parametrize("make", [network, Numbers])
@pytest.mark.parametrize("name", KINDS)
def test_both_ways(name, make):
    kind, settings = KINDS[name]
    plain, module = make(), make()
    for p in plain.parameters():
        p.grad = torch.zeros_like(p)
    own = kind(plain.parameters(), **settings)
    binding = FlatBinding(module)
    flat = kind(binding.params_for(kind), **settings)
    binding.speak_of_parameters(flat)
    steps(plain, own, 3)
    steps(module, flat, 3)
    one, two = copy.deepcopy(own.state_dict()), copy.deepcopy(flat.state_dict())
    assert one.keys() == two.keys()
    assert one["param_groups"] == two["param_groups"]
    torch.testing.assert_close(two["state"], one["state"], rtol=0, atol=1e-15)
    own.load_state_dict(two)
    flat.load_state_dict(one)
    steps(plain, own, 3)
    steps(module, flat, 3)
    for p, q in zip(plain.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_state_that_one_step_cannot_have_is_refused():
    kind = torch.optim.Adam
    module = network()
    binding = FlatBinding(module)
    flat = kind(binding.params_for(kind))
    binding.speak_of_parameters(flat)
    steps(module, flat, 1)
    state = copy.deepcopy(flat.state_dict())
    state["state"][1]["step"] += 1
    with pytest.raises(ValueError, match="step differs between them"):
        flat.load_state_dict(state)
    del state["state"][1]
    with pytest.raises(ValueError, match=r"each of the 4\. Got one of 3"):
        flat.load_state_dict(state)
    with pytest.raises(ValueError, match=r"4 parameters\. Got \[2\]"):
        flat.load_state_dict(kind(nn.Linear(2, 2).parameters()).state_dict())
