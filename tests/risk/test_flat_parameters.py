"""Parts of a vector, joined with and without a second copy of them."""

import pytest
import torch

from flatmin.risk.network import flat_parameters
from flatmin.risk.network.flat_parameters import joined


@pytest.mark.parametrize("large", [1, 1 << 24])
def test_parts_are_joined_in_order(large, monkeypatch):
    monkeypatch.setattr(flat_parameters, "_LARGE", large)
    strided = torch.arange(6.0).view(2, 3).T
    parts = [torch.tensor([[9.0, 8.0]]), torch.tensor(7.0), torch.ones(0), strided]
    expected = torch.tensor([9.0, 8.0, 7.0, 0.0, 3.0, 1.0, 4.0, 2.0, 5.0])
    assert torch.equal(joined(parts), expected)
    assert (parts == []) == (large == 1)
