"""What two processes save and send, beside one process of one or of two threads.

    python benchmarks/ranks.py [--quick] [--json OUT]

starts itself twice, as torchrun would. Each call is made in turn by the risk of all
examples in one process (while the other process does the same, so that both cores are
busy), and by the risk that both share. Seconds of the wall clock are medians, and mean
little where others use the machine; seconds of the processor, of one process, do not
depend on them. One process of two threads is measured alone, on the same two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from kinds import provenance, write

from flatmin.modules import MLP, LeNet
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk

REPEATS, QUICK = 7, 3


def problems(quick):
    """Yield a name, a module and X; only shapes matter for these costs."""
    torch.manual_seed(0)
    yield "LeNet, N = 1200", LeNet(), torch.rand(1200, 1, 28, 28)
    if quick:
        return
    yield (
        "MLP of 1e6, N = 1200",
        MLP(784, 10, hidden_layer_sizes=(1000, 200)),
        torch.rand(1200, 784),
    )


def calls(risk):
    """Return what is timed, by name."""
    theta = risk.params()
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    point, rng = risk.linearize(theta), torch.Generator().manual_seed(0)
    full = make_noise_law("gld_full", batch_size=20)
    leading = make_noise_law("gld_leading", batch_size=20)
    return {
        "gradient": lambda: risk.gradient(theta),
        "H v": lambda: point.hvp(v),
        "diag Σ": lambda: risk.gradient_variances(theta),
        "a step of gld_full": lambda: full.noisy_gradient(risk, theta, None, rng),
        "a refresh of gld_leading": lambda: leading.refresh(risk, theta, rng),
    }


def times(call, repeats):
    """Return medians of the wall's and the processor's seconds of a call."""
    call()
    wall, processor = [], []
    for _ in range(repeats):
        if dist.is_initialized():
            dist.barrier()
        began = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    return {"wall": statistics.median(wall), "processor": statistics.median(processor)}


def measure(n_threads, n_ranks, *, quick):
    """Return the times of every call, alone and, with several ranks, together."""
    torch.set_num_threads(n_threads)
    found = {}
    for name, module, X in problems(quick):
        y = torch.arange(len(X)) % 10
        found[name] = {"D": sum(p.numel() for p in module.parameters())}
        for shared in (False, True)[:n_ranks]:
            risk = EmpiricalRisk(module, "cross_entropy", X, y, distributed=shared)
            for quantity, call in calls(risk).items():
                row = found[name].setdefault(quantity, {})
                row["shared" if shared else "alone"] = times(
                    call, QUICK if quick else REPEATS
                )
                if shared:
                    before = risk._ranks.n_bytes
                    call()
                    row["bytes"] = risk._ranks.n_bytes - before
    return found


def rank_main(folder, *, quick):
    """Measure as one of two ranks; the first writes."""
    rank = int(os.environ["RANK"])
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = measure(1, 2, quick=quick)
    agreement = torch.zeros(5, dtype=torch.long)
    found["agreement"] = times(lambda: dist.all_reduce(agreement), 20)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main():
    """Start the ranks, then one process of two threads; print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one problem, 3 calls")
    parser.add_argument("--json", type=Path, help="where to store the result")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return rank_main(args.rank, quick=args.quick)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank", folder]
        command += ["--quick"] * args.quick
        running = [
            subprocess.Popen(command, env={**os.environ, "RANK": str(rank)})
            for rank in range(2)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError("a rank has failed; its message is above")
        found = json.loads((Path(folder) / "found.json").read_text())
    for name, rows in measure(2, 1, quick=args.quick).items():
        for quantity, row in rows.items():
            if quantity != "D":
                found[name][quantity]["two threads"] = row["alone"]
    report(found)
    about = {**provenance(), "seed": 0, "quick": args.quick, "load": os.getloadavg()}
    write(args.json, {"format": 1, **about, **found})
    return None


def report(found):
    """Print a table."""
    agreement = 1e3 * found["agreement"]["wall"]
    print(f"an agreement takes {agreement:.2f} ms of the wall clock")
    for name, rows in found.items():
        if "D" not in rows:
            continue
        print(f"{name}, D = {rows['D']:,}: ms of one process, processor (wall)")
        print(f"  {'':26}{'alone':>18}{'two share':>18}{'two threads':>18}     bytes")
        for quantity, row in rows.items():
            if quantity == "D":
                continue
            cells = [
                f"{1e3 * row[k]['processor']:8.1f} ({1e3 * row[k]['wall']:.1f})"
                for k in ("alone", "shared", "two threads")
            ]
            text = "".join(f"{cell:>18}" for cell in cells)
            print(f"  {quantity:26}{text}{row['bytes']:10,}")


if __name__ == "__main__":
    main()
