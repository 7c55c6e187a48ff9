"""A basis that is shared out over two processes, against one process."""

import operator
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ._rank import SIZE, problems, solved

close = torch.testing.assert_close
NAMES = [name for name, *_ in problems()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes have found."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parent / "_rank.py"
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), folder / "store", folder],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    """What this process finds with the same search."""
    return solved(basis_device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_find_what_one_process_finds(ranks, alone, name):
    first, second = (found[name] for found in ranks)
    one = alone[name]
    for word in ("eigenvalues", "residuals", "converged", "n_matvecs", "warned"):
        same = torch.equal if torch.is_tensor(first[word]) else operator.eq
        assert same(first[word], second[word])
    # An eigenvalue is off by the square of the residual, over the gap.
    scale = float(one["eigenvalues"].abs().max())
    tol = 1e-2 if name == "bfloat16" else 1e-6
    close(first["eigenvalues"], one["eigenvalues"], rtol=0, atol=tol * scale)
    assert len(first["warned"]) == len(one["warned"]) == (name == "limit")
    assert torch.equal(first["converged"], one["converged"])
    if name not in ("bfloat16", "copies"):  # where rounding decides a step
        assert first["n_matvecs"] == one["n_matvecs"]


@pytest.mark.parametrize("name", NAMES)
def test_eigenvectors_are_shared_out_by_rows(ranks, alone, name):
    shards = [found[name]["eigenvectors"] for found in ranks]
    size = len(alone[name]["eigenvectors"])
    width = -(-size // 2)
    assert [len(shard) for shard in shards] == [width, size - width]
    U = torch.cat(shards).double()
    close(U.T @ U, torch.eye(U.shape[1]).double(), rtol=0, atol=1e-5)
    A = {problem: A for problem, A, _ in problems()}[name]
    exact = getattr(A, "exact", lambda u: A @ u.to(A.dtype))
    errors = torch.stack([exact(u) for u in U.T], 1) - ranks[0][name]["eigenvalues"] * U
    residuals = torch.linalg.vector_norm(errors, dim=0)
    eps = 100 * torch.finfo(A.dtype).eps * 40
    close(residuals, ranks[0][name]["residuals"], rtol=0, atol=eps)


def test_a_random_start_is_that_of_rank_0(ranks):
    first, second = (found["random"]["eigenvalues"] for found in ranks)
    assert torch.equal(first, second)


def test_a_product_that_is_not_finite_on_one_rank_ends_all(ranks):
    for found in ranks:
        assert "must be finite" in found["message"]
    assert SIZE % 2


def test_a_rank_that_raises_ends_all(ranks):
    first, second = (found["raised"] for found in ranks)
    assert first.startswith("RuntimeError: rank 1 raised in a product")
    assert second == "NotImplementedError: no third product"
