"""Every measure of flatmin beside a float64 value that is computed without flatmin.

    python benchmarks/report.py [--quick] [--problems NAME ...] [--json FOLDER]
        [--theta FILE]

"reference" is the LeNet of 11,330 parameters after 3000 steps of gradient descent at
0.1 on 1200 noisy Fashion-MNIST images (``FLATMIN_DATA``; without it a synthetic
stand-in, and said so). The other three are networks that nobody designed for flatmin:
"published", the tabular ResNet of the package ``rtdl_revisiting_models``, "lstm" and
"transformer". flatmin works in float32, through ``CurvatureAnalyzer``,
``NoiseCovarianceAnalyzer``, ``SharpnessScorer`` and the functions of
``flatmin.measures``, all with their defaults where nothing else is said. The values to
compare with come from plain PyTorch in float64, NumPy and SciPy; see ``_float64.py``.

What is exact on both sides must agree to the relative error that is printed as the
limit; what is drawn, to 4 standard errors of the difference. Vectors are compared as a
whole, and their norms are shown. The exit code is 1 if anything disagrees.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from _networks import NETWORKS, make_network, train
from _problems import make_problem
from _report_rows import Report, Sizes
from run import command, log, processor, versions

PUBLISHED = "rtdl-revisiting-models"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ["reference", *NETWORKS]
    parser.add_argument("--problems", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="few examples and steps")
    parser.add_argument("--json", type=Path, default=None, metavar="FOLDER")
    parser.add_argument(
        "--theta", type=Path, default=None, help="keeps the reference problem's θ"
    )
    arguments = parser.parse_args()
    if arguments.quick and arguments.theta is not None:
        parser.error("--theta keeps the θ of 3000 steps; --quick takes 20.")
    return arguments


def reference(arguments):
    """Return the reference problem, θ and how much to do."""
    problem = make_problem("lenet", arguments.quick)
    if arguments.quick:
        X, y = problem.X[:60], problem.y[:60]
        problem = dataclasses.replace(problem, X=X, y=y)
        sizes = Sizes(20, 10, "conv1", 20, (3, 20))
    else:
        sizes = Sizes(300, 40, "conv1", 60, (3, 60))
    if arguments.theta is None:
        return problem, problem.descend(), sizes
    if not arguments.theta.exists():
        torch.save(problem.descend(), arguments.theta)
    return problem, torch.load(arguments.theta), sizes


def network(name, arguments):
    """Return one of the other networks, θ and how much to do."""
    problem = make_network(name, arguments.quick)
    layers = {"published": "output.linear", "lstm": "head", "transformer": "head"}
    sizes = Sizes(len(problem.X), 20, layers[name], 100, (10, 80))
    return problem, train(problem), sizes


def print_rows(rows):
    width = max(len(row.measure) for row in rows)
    head = f"{'':{width}} {'flatmin':>12} {'± se':>9} {'float64':>12} {'± se':>9}"
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}\n{head} {'off by':>9} {'limit':>10}")
        error, limit = (
            (f"{row.error:.1e}", f"{row.limit:.0e} rel")
            if row.unit == "rel"
            else (f"{row.error:.2f}", f"{row.limit:.0f} se ")
        )
        print(
            f"{row.measure:{width}} {row.flatmin:12.6g} {_error(row.stderr)} "
            f"{row.float64:12.6g} {_error(row.float64_stderr)} "
            f"{error:>9} {limit:>10} {'agrees' if row.agrees else 'DISAGREES'}"
        )


def _error(stderr):
    return f"{stderr:9.1e}" if stderr else f"{'':9}"


def main():
    """Compute, print, store."""
    arguments = parse_arguments()
    failed = 0
    for name in arguments.problems:
        start = time.perf_counter()
        log(f"\n{name}")
        if name == "reference":
            problem, theta, sizes = reference(arguments)
        else:
            problem, theta, sizes = network(name, arguments)
        report = Report(problem, theta, sizes, log)
        title = (
            f"{name}: {problem.source}; D = {len(theta)}, N = {len(problem.X)}, "
            f"k = {problem.n_components}"
        )
        rows = report.fill()
        wrong = sum(not row.agrees for row in rows)
        failed += wrong
        print(f"\n{title}")
        print_rows(rows)
        print(f"\n{len(rows)} numbers, {wrong} of them disagree")
        if arguments.json is not None:
            store(arguments, name, title, rows, time.perf_counter() - start)
    sys.exit(1 if failed else 0)


def store(arguments, name, title, rows, seconds):
    known = {key: value for key, value in versions().items() if value is not None}
    if name == "published":
        known[PUBLISHED] = version(PUBLISHED)
    result = {
        "command": command(),
        "problem": title,
        "quick": arguments.quick,
        "seed": 0,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": known,
        "seconds": round(seconds, 1),
        "disagree": sum(not row.agrees for row in rows),
        "rows": [
            {
                key: (
                    value
                    if not isinstance(value, float) or math.isfinite(value)
                    else None
                )
                for key, value in dataclasses.asdict(row).items()
            }
            | {"agrees": row.agrees}
            for row in rows
        ],
    }
    arguments.json.mkdir(parents=True, exist_ok=True)
    path = arguments.json / f"report_{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
