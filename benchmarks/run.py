"""Time flatmin, and other libraries, on the same work, side by side.

    python benchmarks/run.py [--quick] [--peers] [--json OUT]

Times are in units of b, the best bare gradient of the problem: ``torch.autograd.grad``
of the plain module in its fastest layout on all data, timed in turn with every case in
the same process. (On the 251-parameter problem b is an iteration of a bare training
loop.) A figure is the median over blocks, with quartiles in the JSON. Every case runs
in a process of its own, whose memory high-water mark is given as what it needs beyond
the bare gradient, once with the C library's default allocator settings and once with
large temporaries kept ("tuned"). Beside each time stands the error of the answer
against float64; an answer beyond its criterion is marked WRONG. A peer with a choice of
accuracy runs at its loosest setting that meets the criterion.

Fashion-MNIST comes from ``FLATMIN_DATA``; without it a synthetic stand-in is used, and
said so. Peers that are not installed, or that cannot do a problem, say so in the table:
``pip install flatmin[peers]``.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Kept in the heap: freed temporaries of up to a gigabyte are used again, where the
# default hands everything above some megabytes back to the system.
MALLOC = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 26),
    },
}
DISTRIBUTIONS = (
    "flatmin",
    "torch",
    "numpy",
    "scipy",
    "skorch",
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
    "pyhessian",
    "backpack-for-pytorch",
    "opacus",
)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, in minutes")
    parser.add_argument("--peers", action="store_true", help="other libraries too")
    parser.add_argument("--json", default=None, metavar="OUT")
    parser.add_argument("--only", default="", metavar="REGEX", help="some cases")
    parser.add_argument("--problems", nargs="+", default=None)
    parser.add_argument("--malloc", nargs="+", choices=MALLOC, default=list(MALLOC))
    parser.add_argument("--blocks", type=int, default=None)
    parser.add_argument("--budget", type=float, default=None, help="seconds a case")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--blas-threads", type=int, default=None, help="of NumPy and SciPy"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.blocks is None:
        arguments.blocks = 2 if quick else 7
    if arguments.budget is None:
        arguments.budget = 0.5 if quick else 60.0
    if arguments.blas_threads is None:
        arguments.blas_threads = arguments.threads
    return arguments


class Worker:
    """A process that runs jobs under one setting of the allocator."""

    def __init__(self, malloc, arguments):
        self.malloc = malloc
        self.common = {
            key: getattr(arguments, key)
            for key in ("quick", "blocks", "budget", "threads")
        }
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")},
            **MALLOC[malloc],
            "OMP_NUM_THREADS": str(arguments.threads),
            "MKL_NUM_THREADS": str(arguments.threads),
            "OPENBLAS_NUM_THREADS": str(arguments.blas_threads),
            "PYTHONWARNINGS": "ignore",
        }

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_worker.py"))],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def run(self, **job):
        self.process.stdin.write(json.dumps({**self.common, **job}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker stopped at {job}; see above")
        return json.loads(line)


def main():
    arguments = parse_arguments()
    started = time.perf_counter()
    report = {
        "command": command(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "system": platform.system(),
        "threads": arguments.threads,
        "blas_threads": arguments.blas_threads,
        "load_average_before": os.getloadavg(),
        "malloc": {name: MALLOC[name] for name in arguments.malloc},
        "versions": versions(),
        "problems": {},
        "cases": [],
    }
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        workers = [
            stack.enter_context(Worker(name, arguments)) for name in arguments.malloc
        ]
        rows = report["cases"] = select(workers[-1], arguments)
        prepare(workers[-1], rows, report, folder)
        for worker in workers:
            for row in rows:
                log(f"{worker.malloc:9} {row['problem']:12} {row['case']}")
                job = {"kind": "measure", "setting": row["setting"]}
                result = run(worker, row, folder, **job)
                result.pop("traceback", None)  # the folders of this machine
                row[worker.malloc] = result
                if arguments.json:
                    Path(arguments.json).write_text(json.dumps(report, indent=1))
    report["seconds"] = time.perf_counter() - started
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1))
    print_table(report, arguments.malloc)


def select(worker, arguments):
    rows = [
        row
        for row in worker.run(kind="list")["cases"]
        if (arguments.peers or not row["peer"])
        and (row["quick"] or not arguments.quick)
        and (arguments.problems is None or row["problem"] in arguments.problems)
        and re.search(arguments.only, row["case"])
    ]
    if not rows:
        raise SystemExit("No case is left by --only and --problems.")
    return rows


def prepare(worker, rows, report, folder):
    """Compute the references, and choose each case's setting."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        log(f"reference {problem}")
        result = run(worker, {"problem": problem}, folder, kind="reference")
        if "error" in result:
            raise RuntimeError(result["traceback"])
        report["problems"][problem] = result
    for row in rows:
        row["setting"] = 0
        if row["n_settings"] > 1:
            log(f"setting   {row['problem']:12} {row['case']}")
            result = run(worker, row, folder, kind="choose")
            row["setting"] = result.get("index", 0)
            row["tried"] = result.get("tried", [])


def run(worker, row, folder, **job):
    reference = str(Path(folder) / f"{row['problem']}.pt")
    return worker.run(
        problem=row["problem"], case=row.get("case"), reference=reference, **job
    )


def log(message):
    print(message, file=sys.stderr, flush=True)


def command():
    """Return how this was called, without the folders of this machine."""
    here = f"{Path.cwd()}{os.sep}"
    return "python " + " ".join(word.replace(here, "") for word in sys.argv)


def revision(*paths):
    """Return the commit; a result is of a tree in which these have not changed."""
    git = ["git", "-C", str(ROOT)]
    changed, head = (
        subprocess.run([*git, *words], capture_output=True, text=True, check=True)
        for words in (["status", "--porcelain", *paths], ["rev-parse", "HEAD"])
    )
    if changed.stdout.strip():
        raise SystemExit(
            f"Commit these changes before a run that is stored:\n{changed.stdout}"
        )
    return head.stdout.strip()


def processor():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.processor()


def versions():
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def print_table(report, mallocs):
    known = (f"{k} {v}" for k, v in report["versions"].items() if v is not None)
    print(f"{report['processor']}, {report['machine']}; {report['system']}")
    print(", ".join(known))
    print(
        f"{report['threads']} threads, {report['blas_threads']} for NumPy's BLAS; "
        f"load average before {report['load_average_before'][0]:.1f}"
    )
    heads = "".join(f"{name + ', b':>9}{'quartiles':>16}" for name in mallocs)
    for problem, facts in report["problems"].items():
        rows = [row for row in report["cases"] if row["problem"] == problem]
        units = [
            row[name]["b_ms"] for row in rows for name in mallocs if done(row, name)
        ]
        b = f"b = {min(units):.3g} to {max(units):.3g} ms" if units else ""
        print(f"\n{problem}: {facts['source']}; D = {facts['n_params']}; {b}")
        print(f"{'':34}{'':25}{heads}{'MiB':>7}  {'error':16}")
        order = list(dict.fromkeys(row["work"] for row in rows))
        for row in sorted(rows, key=lambda row: order.index(row["work"])):
            print(format_row(row, mallocs))


def done(row, name):
    return "median" in row[name]


def format_row(row, mallocs):
    text = f"{row['work']:34}{row['library']:25}"
    for name in mallocs:
        if not done(row, name):
            return f"{text}  cannot: {row[name]['error'][:90]}"
        low, high = row[name]["quartiles"]
        text += f"{row[name]['median']:9.2f}{f'({low:.2f}-{high:.2f})':>16}"
    last = row[mallocs[-1]]
    text += f"{last['over_bare_gradient_mib']:7.0f}  {format_error(row, last):16}"
    return f"{text}  {last['note']}".rstrip()


def format_error(row, result):
    if not result["errors"]:
        return "-"
    name, worst = max(result["errors"].items(), key=lambda item: item[1])
    if worst <= row["criterion"]:
        return f"{worst:.0e}"
    return f"{worst:.0e} WRONG" + (f" ({name})" if name != "relative" else "")


if __name__ == "__main__":
    main()
