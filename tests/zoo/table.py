"""Write ``docs/zoo.md``: ``python -m tests.zoo.table [--full]`` from the repository.

``--full`` asks for everything in every chunk size, and takes twice as long.
What must not be is printed, and gives the exit code 1.
"""

import argparse
import gc
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from ._harness import build, examine, failures, verdicts
from ._registry import FAMILIES

__all__ = ["PAGE", "counts", "read_rows", "row"]

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
PATHS = ("reference", "graph")

_TORCH = torch.__version__.split("+")[0]

_HEAD = """\
# The zoo

Written by `python -m tests.zoo.table`; `tests/zoo/` holds the kinds, and the test that
this page is what the code does.

Each kind of module, of loss or of function stands in a small network of seven examples.
Twelve quantities are asked for: the value, the gradient, the rows gᵢ, diag Σ, ‖gᵢ‖²,
H v, G v, J v, Jᵀu, gᵢᵀv, Tr Gᵢ and (1/N) Σ Hᵢ²v. They are asked for of all examples at
once or of one after the other, in turn, and in chunks of three, but (1/N) Σ Hᵢ²v in one
of these; by graphs, which larger problems take, H v and one of the other four products,
in chunks of three (`--full` asks for all of them in every chunk size). "Right" is a
relative error below 1e-6 in float64, against plain autograd of one example after the
other; for BatchNorm "of the batch", which is `batch_norm="batch"`, of all examples in
one chunk. "Refused" is an error with the sentence that is quoted ("…" stands for a
number). PyTorch {torch}.

{counts}
"""


def row(family, name, cells):
    """Return the line of one kind in the page's table."""
    said = (_said(verdicts(cells, path)) for path in PATHS)
    return f"| {_escaped(name)} | {' | '.join(said)} |"


def _said(found):
    if len(found) == 1:
        return _escaped(next(iter(found)))
    parts = ["right"] if "right" in found else []
    for said in sorted(found.keys() - {"right"}):
        parts.append(f"{', '.join(found[said])} {said}")
    return _escaped("; ".join(parts))


def _escaped(text):
    return text.replace("|", "\\|")


def read_rows(page):
    """Return the page's lines by family and name."""
    rows, family = {}, None
    for line in page.splitlines():
        if line.startswith("## "):
            family = line[3:]
        elif line.startswith("| ") and not line.startswith(("| Kind", "| ---")):
            rows[family, line.split(" | ")[0][2:]] = line
    return rows


def counts(cells_of):
    """Return how many kinds and cells there are of each outcome."""
    cells = [c for found in cells_of.values() for c in found.values()]
    tally = {
        said: sum(c.startswith(said) for c in cells)
        for said in ("right", "refused", "wrong", "crash")
    }
    listed = ", ".join(f"{n} {said}" for said, n in tally.items())
    return f"{len(cells_of)} kinds, {len(cells)} cells: {listed}."


def _one(family, name, full):
    torch.set_num_threads(1)
    gc.freeze()  # collections would walk through all of PyTorch's own objects
    kind = build(FAMILIES[family][name])
    try:
        cells = examine(kind, name, full=full)
    except Exception as error:  # of the kind itself, or of its oracle
        return {}, [f"{type(error).__name__}: {error}"]
    return cells, failures(kind, cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    names = [(family, name) for family, kinds in FAMILIES.items() for name in kinds]
    cells_of, n_bad = {}, 0
    with ProcessPoolExecutor(args.jobs) as pool:
        results = pool.map(_one, *zip(*names, strict=True), [args.full] * len(names))
        for (family, name), (cells, bad) in zip(names, results, strict=True):
            cells_of[family, name] = cells
            if bad:
                n_bad += 1
                print(f"{family}: {name}", *bad, sep="\n    ", flush=True)
    lines = [_HEAD.format(counts=counts(cells_of), torch=_TORCH)]
    for family, kinds in FAMILIES.items():
        lines += [f"## {family}", "", "| Kind | Reference path | Traced path |"]
        lines += ["| --- | --- | --- |"]
        lines += [row(family, name, cells_of[family, name]) for name in kinds]
        lines.append("")
    PAGE.write_text("\n".join(lines), encoding="utf-8")
    print(counts(cells_of), f"{n_bad} kinds fail.")
    return bool(n_bad)


if __name__ == "__main__":
    sys.exit(main())
