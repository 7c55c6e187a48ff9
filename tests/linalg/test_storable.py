"""Operators made of tensors, as dicts and back."""

import pytest
import torch

from flatmin.linalg import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    LowRankOperator,
    ScaledIdentityOperator,
    operator_from_storable,
    operator_to_storable,
)


def positive(*shape):
    rng = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


OPERATORS = [
    DenseOperator(torch.diag_embed(positive(3, 4))),
    DiagonalOperator(positive(4)),
    LowRankOperator(positive(2), torch.linalg.qr(positive(5, 2)).Q.float()),
    ScaledIdentityOperator(positive(2), 3),
    ScaledIdentityOperator(positive(1)[0], 3),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda held: type(held).__name__)
def test_it_comes_back_and_draws_alike(operator):
    found = operator_from_storable(operator_to_storable(operator))
    assert type(found) is type(operator)
    assert torch.equal(found.to_dense(), operator.to_dense())
    draws = [
        held.sample(torch.Generator().manual_seed(1)) for held in (found, operator)
    ]
    assert torch.equal(*draws)


class Mine(DiagonalOperator):
    """May hold anything else."""


@pytest.mark.parametrize(
    "operator", [Mine(positive(2)), FunctionOperator(lambda v: v, 2), OPERATORS[0] * 2]
)
def test_what_is_made_of_something_else_is_refused(operator):
    with pytest.raises(TypeError, match=r"made of tensors are DenseOperator, .* Got"):
        operator_to_storable(operator)
