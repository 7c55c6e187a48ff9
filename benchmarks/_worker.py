"""Runs jobs, each in a process of its own, under one setting of the environment.

Started by ``run.py`` with the allocator and the threads set in the environment. It
imports everything once, then forks a child for each job, so that a job's memory
high-water mark is its own. Before the fork nothing runs in parallel: a child would wait
for threads that it does not have.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import resource
import sys
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from _accuracy import CRITERIA, errors
from _cases import FLATMIN, Case, make_risk
from _peers import LIBRARIES, PEERS
from _problems import Problem, make_problem
from _reference import make_reference
from _timing import UNTIMED, measure
from threadpoolctl import threadpool_info
from torch.fx.experimental.proxy_tensor import make_fx

CASES: dict[tuple[str, str], Case] = {
    (problem, case.name): case for case in FLATMIN + PEERS for problem in case.problems
}


def main() -> None:
    torch.set_num_threads(1)
    _import_the_rest()
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        job = json.loads(line)
        if "problem" in job:
            make_problem(job["problem"], job["quick"])  # kept, for all its children
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_send, args=(theirs, job))
        child.start()
        theirs.close()
        try:
            result = ours.recv()
        except EOFError:
            child.join()
            result = {"error": f"the process ended with {child.exitcode}"}
        child.join()
        print(json.dumps(result), flush=True)


def _import_the_rest() -> None:
    """Run what imports more on its first call, so that no child's time has it."""
    problem = make_problem("tabular", True)
    risk = make_risk(problem)
    risk.gradient_variances(problem.theta())
    make_fx(torch.sin)(torch.ones(1))
    for name in LIBRARIES:
        # A child will say what is missing.
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


def _list() -> list[dict[str, Any]]:
    peers = {id(case) for case in PEERS}
    return [
        {
            "problem": problem,
            "case": case.name,
            "work": case.work,
            "library": case.library,
            "quick": problem in case.quick,
            "peer": id(case) in peers,
            "n_settings": len(case.settings),
            "criterion": CRITERIA.get(case.quantity or ""),
        }
        for (problem, _), case in CASES.items()
    ]


def _send(pipe: Connection, job: dict[str, Any]) -> None:
    try:
        pipe.send(_run(job))
    # What a library cannot do is a result, too.
    except Exception as error:
        lines = str(error).strip().splitlines()
        message = f"{type(error).__name__}: {lines[0] if lines else ''}"
        pipe.send({"error": message, "traceback": traceback.format_exc()})


def _run(job: dict[str, Any]) -> dict[str, Any]:
    if job["kind"] == "list":
        return {"cases": _list()}
    torch.set_num_threads(job["threads"])
    problem = make_problem(job["problem"], job["quick"])
    if job["kind"] == "reference":
        reference = make_reference(problem)
        torch.save(reference, job["reference"])
        return {"source": problem.source, "n_params": len(reference["theta"])}
    reference = torch.load(job["reference"], weights_only=True)
    case = CASES[job["problem"], job["case"]]
    problem = problem.at(reference["theta"])
    if job["kind"] == "choose":
        return _choose(case, problem, reference)
    return _measure(case, problem, reference, job)


def _choose(
    case: Case, problem: Problem, reference: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Return the loosest setting that meets the criterion, else the tightest."""
    quantity = case.quantity or ""
    tried = []
    for setting in case.settings:
        work = case.make(problem.at(reference["theta"]), reference["v"], setting)
        found = errors(quantity, work.answer(work.call()), reference, problem)
        tried.append({"setting": repr(setting), "note": work.note(), "errors": found})
        if max(found.values()) <= CRITERIA[quantity]:
            break
    return {"index": len(tried) - 1, "tried": tried}


def _measure(
    case: Case,
    problem: Problem,
    reference: dict[str, torch.Tensor],
    job: dict[str, Any],
) -> dict[str, Any]:
    setting = case.settings[job["setting"]]
    last = None
    unit = problem.unit()
    for _ in range(UNTIMED + 1):
        unit()
    before = _high_water()
    work = case.make(problem.at(reference["theta"]), reference["v"], setting)

    def call() -> None:
        nonlocal last
        last = work.call()

    times = measure(
        work.unit or unit,
        call,
        work.less,
        prime=work.prime or call,
        steps=work.steps,
        blocks=job["blocks"],
        budget=job["budget"],
    )
    after = _high_water()
    found = {}
    if case.quantity is not None:
        found = errors(case.quantity, work.answer(last), reference, problem)
    return {
        **times.summary(),
        "peak_mib": after,
        "over_bare_gradient_mib": after - before,
        "errors": found,
        "note": work.note(),
        "threads": {
            pool["user_api"] + " " + pool["prefix"]: pool["num_threads"]
            for pool in threadpool_info()
        },
    }


def _high_water() -> float:
    """Return the most memory that this process has held, in MiB."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
