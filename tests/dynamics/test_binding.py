"""Parameters and gradients as views of two vectors."""

import torch
from torch import nn

from flatmin.dynamics import FlatBinding

from ._problems import network


def storages(tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_theta_holds_the_parameters_in_order():
    module = network()
    before = nn.utils.parameters_to_vector(module.parameters()).detach()
    binding = FlatBinding(module)
    assert torch.equal(binding.theta, before)
    assert storages(module.parameters()) == storages([binding.theta])
    assert storages(p.grad for p in module.parameters()) == storages([binding.gradient])
    assert (binding.gradient == 0).all()


def test_the_parameters_stay_the_same_objects():
    module = network()
    before = list(module.parameters())
    FlatBinding(module)
    assert all(p is q for p, q in zip(module.parameters(), before, strict=True))


def test_a_step_of_an_optimizer_moves_theta():
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    binding = FlatBinding(module)
    start = binding.theta.clone()
    binding.gradient.copy_(torch.arange(len(start)))
    optimizer.step()
    assert torch.equal(binding.theta, start - 0.5 * torch.arange(len(start)))


def test_assign_moves_the_module():
    module = network()
    binding = FlatBinding(module)
    binding.assign(torch.arange(26.0))
    assert torch.equal(
        nn.utils.parameters_to_vector(module.parameters()),
        torch.arange(26.0).double(),
    )


def test_release_gives_every_parameter_its_own_storage():
    module = network()
    binding = FlatBinding(module)
    binding.assign(torch.arange(26.0))
    binding.release()
    parameters = list(module.parameters())
    assert len(storages([binding.theta, *parameters])) == 1 + len(parameters)
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert torch.equal(nn.utils.parameters_to_vector(parameters), binding.theta)


def test_frozen_parameters_are_left_alone():
    module = network()
    module[0].weight.requires_grad_(requires_grad=False)
    pointer = module[0].weight.data_ptr()
    binding = FlatBinding(module)
    assert len(binding.theta) == 26 - 12
    assert module[0].weight.data_ptr() == pointer
    assert module[0].weight.grad is None


def test_a_tied_parameter_appears_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    binding = FlatBinding(module)
    assert len(binding.theta) == 9 + 3 + 3
    binding.release()
    assert module[1].weight is module[0].weight
