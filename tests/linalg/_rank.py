"""One of two processes that solve the same problems: rank, store, folder of results."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from _matrices import Reflected, randn

from flatmin.linalg import DiagonalOperator, FunctionOperator, eigsh

SIZE = 1001  # odd, so that the shards are not of one size


def problems():
    """Yield a name, an operator and arguments."""
    values = torch.cat([torch.arange(40.0, 20, -1), 0.5 * randn(SIZE - 20).float()])
    outliers = Reflected(values)
    for which in ("LM", "LA", "SA", "BE"):
        yield f"outliers {which}", outliers, {"k": 3, "which": which, "max_basis": 10}
    yield "large basis", outliers, {"k": 3}
    start = torch.linspace(0, 1, SIZE, dtype=torch.float64)
    yield "v0", outliers, {"k": 1, "v0": start}
    single = Reflected(values, torch.float32)
    yield "float32", single, {"k": 2, "max_basis": 9}
    yield "bfloat16", single, {"k": 1, "tol": 1e-2, "basis_dtype": torch.bfloat16}
    copies = torch.linspace(0, 0.5, SIZE, dtype=torch.float64)
    copies[-3:] = 1
    yield "copies", DiagonalOperator(copies), {"k": 4, "max_basis": 8}
    yield "zero", DiagonalOperator(torch.zeros(SIZE)), {"k": 2}
    yield "dense", DiagonalOperator(torch.arange(31.0)), {"k": 2}
    yield "one", DiagonalOperator(torch.ones(1)), {"k": 1}
    yield "limit", outliers, {"k": 2, "tol": 1e-12, "max_basis": 6, "max_matvecs": 20}


def solved(**more):
    """Return the result of every problem as a dict of plain values."""
    found = {}
    for name, A, options in problems():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = eigsh(A, rng=0, **{"max_matvecs": 900, **options, **more})
        found[name] = {
            "eigenvalues": result.eigenvalues,
            "eigenvectors": result.eigenvectors.contiguous(),
            "residuals": result.residuals,
            "converged": result.converged,
            "n_matvecs": result.n_matvecs,
            "warned": [str(w.message) for w in caught],
        }
    return found


def breaks_on(rank):
    """Return a product that raises at its third call, on one rank alone."""
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) == 3 and dist.get_rank() == rank:
            raise NotImplementedError("no third product")
        return v.flip(0)

    return product


def main(rank, store, folder):
    torch.set_num_threads(1 + rank)  # no number hangs on it
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    found = solved(distributed=True)
    # A random start is that of one rank.
    found["random"] = eigsh(
        Reflected(torch.linspace(0, 1, SIZE) ** 8), 1, distributed=True
    )
    found["random"] = {"eigenvalues": found["random"].eigenvalues}
    bad = FunctionOperator(lambda v: v / (0 if rank else 1), SIZE)
    try:
        eigsh(bad, 1, rng=0, distributed=True)
    except torch.linalg.LinAlgError as error:
        found["message"] = str(error)
    try:
        eigsh(FunctionOperator(breaks_on(1), SIZE), 1, rng=0, distributed=True)
    except RuntimeError as error:
        found["raised"] = f"{type(error).__name__}: {error}"
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
