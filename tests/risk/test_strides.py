"""Images are laid channels-last where that changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk


class Patches(nn.Module):
    """3 x 3 patches by strides of an array that lies by rows."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(3, 4, 1), nn.Linear(36, 3)

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        n, c, height, width = h.shape
        shape = n, c, height - 2, width - 2, 3, 3
        strides = c * height * width, height * width, width, 1, width, 1
        patches = h.as_strided(shape, strides)
        return self.outer(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).mean((1, 2)))


def frozen_first():
    first = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(requires_grad=False)
    return nn.Sequential(first, nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 3))


NETS = {
    "patches by strides": Patches,
    # The derivative of a GroupNorm of images that lie channels-last ended Python.
    "group norm first": lambda: nn.Sequential(
        nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ),
    "group norm behind frozen layers": frozen_first,
    "group norm behind a convolution": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
    ),
}


@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETS)
def test_the_layout_of_images_changes_nothing(name, dtype, memory_format):
    torch.manual_seed(0)
    X, y = torch.randn(20, 3, 6, 6, dtype=dtype), torch.arange(20) % 3
    module = NETS[name]().to(dtype)
    loss = F.cross_entropy(module(X), y)
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss, parameters)
    X = X.to(memory_format=getattr(torch, memory_format))
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    torch.testing.assert_close(risk.value(theta), loss.detach())
    right = torch.cat([part.flatten() for part in gradient])
    torch.testing.assert_close(risk.gradient(theta), right)
    rows = torch.cat(list(risk.per_example_gradients(theta)))
    torch.testing.assert_close(rows.mean(0), right, rtol=1e-4, atol=1e-6)


def test_convolutions_are_given_images_channels_last():
    X, y = torch.randn(20, 3, 6, 6), torch.arange(20) % 3
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    seen = []
    module[0].register_forward_pre_hook(lambda _module, x: seen.append(x[0].stride()))
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    seen.clear()
    risk.value(risk.params())
    assert seen == [(108, 1, 18, 3)]
