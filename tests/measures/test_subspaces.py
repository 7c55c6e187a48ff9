"""Bases and subspaces against their definitions and SciPy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from flatmin.measures import (
    cosines,
    overlap,
    principal_angles,
    projection_residual,
    random_projection_residual,
    subspace_share,
)

close = torch.testing.assert_close


def randn(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def frame(D, k, seed=0):
    return torch.linalg.qr(randn(D, k, seed=seed))[0]


U, V = frame(12, 3), frame(12, 3, seed=1)


def projector(B):
    return B @ torch.linalg.inv(B.T @ B) @ B.T


def test_cosines():
    expected = torch.stack([(u @ v).abs() for u, v in zip(U.T, V.T, strict=True)])
    close(cosines(U, V), expected)
    lengths = torch.tensor([-2.0, 0.5, 3.0]).double()
    close(cosines(U * lengths, V), expected)
    close(cosines(U.float(), V.float()), expected, atol=1e-6, rtol=1e-5)


def test_residual_of_orthonormal_bases():
    e = projection_residual(U, V)
    close(e, 3 - (U.T @ V).square().sum())
    close(e, projection_residual(V, U))
    assert projection_residual(U, U) < 1e-20
    both = frame(12, 6)
    close(projection_residual(both[:, :3], both[:, 3:]), torch.tensor(3.0).double())


def test_residual_of_any_bases():
    """Equation 19 as it stands: A as it is, and of B the span alone."""
    A, B = randn(12, 3), randn(12, 4, seed=2)
    expected = (A - projector(B) @ A).square().sum()
    close(projection_residual(A, B), expected)
    mixed = B @ randn(4, 4, seed=3)
    close(projection_residual(A, mixed), expected)
    close(projection_residual(10 * A, B), 100 * expected)


def test_overlap_is_of_the_spans():
    close(overlap(U, V), 1 - projection_residual(U, V) / 3)
    mixed = U @ randn(3, 3, seed=3)
    close(overlap(mixed, V), overlap(U, V))
    close(overlap(V[:, :2], V), torch.tensor(1.0).double())


@pytest.mark.parametrize("columns", [(3, 3), (2, 4), (4, 2)])
def test_principal_angles(columns):
    A, B = (randn(12, k, seed=i) for i, k in enumerate(columns))
    expected = np.sort(scipy.linalg.subspace_angles(A.numpy(), B.numpy()))
    close(principal_angles(A, B), torch.from_numpy(expected))
    mean = principal_angles(A, B).cos().square().sum() / columns[0]
    close(mean, overlap(A, B))


def test_small_and_right_angles():
    tiny = 1e-9
    B = torch.tensor([[1.0, 0.0], [tiny, 0.0], [0.0, 0.0], [0.0, 1.0]]).double()
    angles = principal_angles(torch.eye(4).double()[:, :3], B)
    close(
        angles, torch.tensor([0.0, np.pi / 2], dtype=torch.float64), atol=1e-15, rtol=0
    )
    angles = principal_angles(torch.eye(4).double()[:, :1], B[:, :1])
    close(angles, torch.tensor([tiny], dtype=torch.float64), rtol=1e-6, atol=0)


def test_random_subspaces_have_the_baseline():
    D, k = 30, 4
    found = torch.stack(
        [
            projection_residual(frame(D, k, 2 * i), frame(D, k, 2 * i + 1))
            for i in range(200)
        ]
    )
    expected = random_projection_residual(k, D)
    assert abs(found.mean() - expected) < 4 * found.std() / 200**0.5


def test_share():
    v = randn(12, seed=5)
    close(subspace_share(v, U), (U.T @ v).square().sum() / v.square().sum())
    close(subspace_share(v, 3 * U @ randn(3, 3)), subspace_share(v, U))
    with pytest.raises(ValueError, match=r"not 0\. Got a vector of norm 0\.0"):
        subspace_share(torch.zeros(12), U)


def test_batches():
    A, B, v = randn(2, 5, 12, 3), randn(2, 5, 12, 3, seed=1), randn(2, 5, 12, seed=2)
    for function in (cosines, projection_residual, overlap, principal_angles):
        whole = function(A, B)
        assert whole.shape[:2] == (2, 5)
        close(whole[1, 3], function(A[1, 3], B[1, 3]))
    close(subspace_share(v, B)[0, 4], subspace_share(v[0, 4], B[0, 4]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosines(U, V[:, :2]), "as many columns. Got 3 and 2"),
        (lambda: overlap(U, V[:5]), r"one size D. Got shapes \(12, 3\) and \(5, 3\)"),
        (lambda: overlap(U[0], V), "one size D"),
        (lambda: projection_residual(U, V[:, [0, 0]]), "linearly independent"),
        (lambda: overlap(randn(3, 4), randn(3, 2)), "linearly independent"),
        (lambda: random_projection_residual(5, 4), "between 1 and D = 4. Got 5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
