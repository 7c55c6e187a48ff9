"""Inner products and orthogonalisation of long float32 vectors."""

import pytest
import torch

from flatmin.linalg._orthogonal import dots, orthogonalise, random_direction

from ._matrices import randn, rng

close = torch.testing.assert_close


@pytest.mark.parametrize("shape", [(7,), (7, 3)])
@pytest.mark.parametrize("rows", [0, 1, 5, 600])
def test_dots_over_blocks(rows, shape):
    size = 2500  # not a multiple of the narrowest block
    V, w = randn(rows, size), randn(size, *shape[1:], seed=1)
    close(dots(V, w), V @ w)


def test_dots_in_float64():
    """A million float32 terms whose sum cancels."""
    w = randn(1_000_000, dtype=torch.float32)
    V = torch.stack([w, w.flip(0)])
    exact = V.double() @ w.double()
    close(dots(V, w), exact, rtol=1e-12, atol=1e-9)
    assert ((V @ w).double() - exact).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vector_almost_in_the_span(dtype):
    """One pass would leave w orthogonal to a part in a thousand only."""
    V = torch.linalg.qr(randn(2000, 20)).Q.mT.to(dtype).contiguous()
    eps = torch.finfo(dtype).eps
    w = randn(20, seed=1).to(dtype) @ V + 1e3 * eps * randn(2000, seed=2).to(dtype)
    rest, components = orthogonalise(w, V)
    assert components.dtype == torch.float64
    close(components, dots(V, w), rtol=1e-4, atol=1e-4)
    assert dots(V, rest).norm() <= 10 * eps * rest.norm()


def test_random_directions():
    V = torch.linalg.qr(randn(50, 49)).Q.mT.contiguous()
    v = random_direction(V, rng(0))
    assert v.norm() == pytest.approx(1)
    assert (V @ v).abs().max() < 1e-13
    assert torch.equal(v, random_direction(V, rng(0)))
    assert random_direction(V[:0], rng(0)).norm() == pytest.approx(1)
