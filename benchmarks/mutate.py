"""Change one line at a time, and see whether a test notices.

Each mutation (n - 1 to n, + to -, < to <=, a constant, a dropped ``not`` or ``abs``,
min for max, ...) is made in a copy of the tree, where the tests that mirror the module
run until the first fails. A survivor is a line whose error no test would see, or one
that changes nothing that is promised: look at each. Off in continuous integration,
since a folder takes minutes to hours; an interrupted run is taken up again::

    python benchmarks/mutate.py linalg noise --n 10 --seed 0 --output mutations.json

Defaults of parameters, texts, annotations and errors are left as they are. Of the
libraries for this, mutmut wraps every function, which flatmin's graphs and hashes of
code would see, and cosmic-ray has neither a sample with a seed nor tests by module.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from run import command, processor, revision, versions

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
OPERATORS = {ast.Add: b"+", ast.Sub: b"-", ast.Mult: b"*", ast.Div: b"/"}
SWAPPED = {b"+": b"-", b"-": b"+", b"*": b"/", b"/": b"*"}
COMPARISONS = {
    ast.Lt: (b"<", b"<="),
    ast.LtE: (b"<=", b"<"),
    ast.Gt: (b">", b">="),
    ast.GtE: (b">=", b">"),
    ast.Eq: (b"==", b"!="),
    ast.NotEq: (b"!=", b"=="),
}
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "abs": ""}


@dataclass(frozen=True)
class Mutation:
    """Bytes of a file that are replaced."""

    file: str
    start: int
    stop: int
    new: bytes

    def apply(self, source):
        return source[: self.start] + self.new + source[self.stop :]

    def describe(self, source):
        """Return the line before and after."""
        begin = source.rfind(b"\n", 0, self.start) + 1
        end = source.find(b"\n", self.stop)
        after = source[begin : self.start] + self.new + source[self.stop : end]
        return {
            "file": self.file,
            "line": source.count(b"\n", 0, self.start) + 1,
            "before": source[begin:end].decode().strip(),
            "after": after.decode().strip(),
        }


class Finder(ast.NodeVisitor):
    """Collects the mutations of a module."""

    def __init__(self, file, source):
        self.file, self.source = file, source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found = []

    def _start(self, node):
        return self.lines[node.lineno - 1] + node.col_offset

    def _stop(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def _add(self, start, stop, new):
        self.found.append(Mutation(self.file, start, stop, new))

    def _between(self, left, right, old, new):
        """Replace what stands between two operands."""
        at = self.source.find(old, self._stop(left), self._start(right))
        if at >= 0:
            self._add(at, at + len(old), new)

    # What is no computation.

    def visit_Raise(self, node):
        pass

    def visit_JoinedStr(self, node):
        pass

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node):
        for statement in node.body:
            self.visit(statement)

    def visit_Lambda(self, node):
        self.visit(node.body)

    # What is.

    def visit_BinOp(self, node):
        old = OPERATORS.get(type(node.op))
        if old is not None:
            self._between(node.left, node.right, old, SWAPPED[old])
        if isinstance(node.op, ast.Add | ast.Sub) and _is_one(node.right):
            self.visit(node.left)
            self._add(self._start(node.right), self._stop(node.right), b"0")
        else:
            self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg in ("ddof", "correction") and _is_one(node.value):
            self._add(self._start(node.value), self._stop(node.value), b"0")
        else:
            self.generic_visit(node)

    def visit_BoolOp(self, node):
        old, new = (b"and", b"or") if isinstance(node.op, ast.And) else (b"or", b"and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, old, new)
        self.generic_visit(node)

    def visit_Compare(self, node):
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            if type(op) in COMPARISONS:
                self._between(left, right, *COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not | ast.USub):
            # Not to where the operand starts: a bracket may open before it.
            start = self._start(node)
            stop = start + len("not" if isinstance(node.op, ast.Not) else "-")
            while self.source[stop : stop + 1] == b" ":
                stop += 1
            self._add(start, stop, b"")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            new = str(not value)
        elif isinstance(value, int):
            new = str(value + 1)
        elif isinstance(value, float):
            new = repr(2 * value if value else 1.0)
        else:
            return
        self._add(self._start(node), self._stop(node), new.encode())

    def visit_Call(self, node):
        function = node.func
        if isinstance(function, ast.Name) and function.id in NAMES:
            new = NAMES[function.id].encode()
            self._add(self._start(function), self._stop(function), new)
        elif isinstance(function, ast.Attribute) and function.attr in NAMES:
            stop = self._stop(function)
            if function.attr != "abs":
                new = NAMES[function.attr].encode()
                self._add(stop - len(function.attr), stop, new)
            elif not node.args:
                self._add(stop - len(".abs"), self._stop(node), b"")
        self.generic_visit(node)


def _is_one(node):
    return ast.unparse(node) == "1"


def mutations(folder):
    """Return all mutations of a folder of flatmin/, in order."""
    found = []
    for path in sorted((ROOT / "flatmin" / folder).rglob("*.py")):
        finder = Finder(str(path.relative_to(ROOT)), path.read_bytes())
        finder.visit(ast.parse(finder.source))
        found += sorted(finder.found, key=lambda m: (m.start, m.stop, m.new))
    return found


def sample(folder, n, seed):
    """Return n mutations of a folder, drawn with a seed."""
    found = mutations(folder)
    return random.Random(f"{seed}/{folder}").sample(found, min(n, len(found)))


def tests_of(file):
    """Return the tests that mirror a module: of its own name first, doctests last.

    Doctests first would import a second copy of a private module, which tests that
    patch it by its dotted name do not find.
    """
    path = Path(file)
    folder = Path("tests", *path.parts[1:2])
    own = folder / f"test_{path.stem.strip('_')}.py"
    return [*([str(own)] if (ROOT / own).exists() else []), str(folder), file]


def run(mutation, tree, limit):
    """Return what the tests say to a mutation, and restore the file."""
    path = tree / mutation.file
    source = path.read_bytes()
    path.write_bytes(mutation.apply(source))
    start, by = time.perf_counter(), ""
    try:
        failed = first_failure(tests_of(mutation.file), tree, limit)
        outcome = "survived" if failed is None else "killed"
    except subprocess.TimeoutExpired:
        outcome, failed = "time limit", None
    finally:
        path.write_bytes(source)
    if failed is not None:
        by = failed
        if "::" in failed and first_failure([failed], tree, limit) is not None:
            outcome = "broken test"  # it fails without the mutation, too
    return {
        **mutation.describe(source),
        "outcome": outcome,
        "by": by,
        "seconds": round(time.perf_counter() - start, 1),
    }


def first_failure(tests, tree, limit):
    """Return the first test that fails, or pytest's last line; None if all pass."""
    words = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if failed:
        return failed[0].split(" ", 1)[1].split(" - ")[0]
    return lines[-1] if lines else f"exit status {done.returncode}"


def store(path, report):
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", "utf-8")
    part.replace(path)


def table(report):
    """Return the outcomes by folder, and the survivors, as Markdown."""
    counts = Counter(
        (row["file"].split("/")[1], row["outcome"]) for row in report["mutations"]
    )
    text = ["| folder | killed | survived | time limit |", "|---|---|---|---|"]
    for folder in dict.fromkeys(folder for folder, _ in counts):
        numbers = (counts[folder, o] for o in ("killed", "survived", "time limit"))
        text.append(f"| {folder} | {' | '.join(map(str, numbers))} |")
    text += ["", "| not killed | before | after |", "|---|---|---|"]
    text += [
        f"| {row['file']}:{row['line']} | `{row['before']}` | `{row['after']}` |"
        for row in report["mutations"]
        if row["outcome"] != "killed"
    ]
    return "\n".join(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="of flatmin/, such as linalg")
    parser.add_argument("--n", type=int, default=10, help="mutations of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds for each")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    start = {
        "format": FORMAT,
        "revision": revision("flatmin", "tests", "benchmarks/mutate.py"),
        "command": command(),
        "processor": processor(),
        "versions": versions(),
        "seed": arguments.seed,
    }
    report = start | {"mutations": []}
    if arguments.output.exists():
        report = json.loads(arguments.output.read_text("utf-8"))
        if (report["revision"], report["seed"]) != (start["revision"], start["seed"]):
            raise SystemExit(
                f"{arguments.output} is of revision {report['revision']} and seed "
                f"{report['seed']}. Continue from these, or name another file."
            )
    done = {row["id"] for row in report["mutations"]}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    drawn = [sample(f, arguments.n, arguments.seed) for f in arguments.folders]
    with TemporaryDirectory() as scratch:
        tree = Path(scratch)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("flatmin", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", tree)
        # One of each folder in turn, so that a run that is cut off has seen them all.
        for turn in range(arguments.n):
            for folder in drawn:
                if turn >= len(folder):
                    continue
                m = folder[turn]
                key = f"{m.file}:{m.start}-{m.stop}:{m.new.decode()}"
                if key in done:
                    continue
                row = {"id": key} | run(m, tree, arguments.limit)
                report["mutations"].append(row)
                store(arguments.output, report)
                print(row["outcome"], row["file"], row["line"], row["by"], flush=True)
    print(table(report))


if __name__ == "__main__":
    main()
