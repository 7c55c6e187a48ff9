"""What deflated estimates cost: every product with the matrix is counted."""

import pytest
import torch

from flatmin.linalg import FunctionOperator, eigsh
from flatmin.measures._deflation import deflated_norm, deflated_trace


@pytest.mark.parametrize("estimate", [deflated_norm, deflated_trace])
@pytest.mark.parametrize("max_matvecs", [30, 200])
def test_products_are_counted(estimate, max_matvecs):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 50, generator=generator, dtype=torch.float64)
    A, taken = root @ root.T, []

    def product(v):
        taken.append(1)
        return A @ v

    operator = FunctionOperator(product, 50, dtype=A.dtype)
    pairs = eigsh(operator, 3, rng=0)
    taken.clear()
    result = estimate(
        operator, pairs, rtol=1e-9, max_matvecs=max_matvecs, rng=generator
    )
    assert result.n_matvecs == len(taken) > 0
