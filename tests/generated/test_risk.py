"""Risks of generated networks, losses and data: right, or refused by name.

Every number is compared with dense float64 autograd (``_reference.py``). What is
refused has to be refused with an error that names the argument at fault.
"""

import re
from collections import Counter
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from ._data import FLOATS
from ._draws import index_vectors, seeds, some, vector, vectors
from ._faults import at_construction, bad_indices, bad_vectors
from ._problems import problems
from ._quantities import CHOOSING, LINEAR, QUANTITIES, compare
from ._reference import Reference, plain

pytestmark = [
    pytest.mark.filterwarnings("ignore:The loss does not depend"),
    pytest.mark.filterwarnings("ignore:Using a target size"),  # PyTorch's, of bad y
]

# PyTorch can hold these, and do hardly more.
BEYOND_TORCH = ("uint16", "uint32", "uint64")

EXAMPLES = settings.default.max_examples // 100  # 1, or as many times as were asked for


def make(problem):
    return EmpiricalRisk(
        problem.module, problem.loss.given, problem.X, problem.y, **problem.options
    )


def odd(problem):
    """Return the arguments that may be refused although they mean something."""
    found = []
    kinds = {name: plain(getattr(problem, name)).dtype for name in ("X", "y")}
    found += [name for name, kind in kinds.items() if kind.name in BEYOND_TORCH]
    wanted = ("int64",) if problem.loss.targets == "classes" else FLOATS
    if problem.loss.own and kinds["y"].name not in wanted:
        found.append("y")  # PyTorch's own losses take no other
    if (
        problem.loss.counts is not None
        and not problem.loss.counts(labels(problem)).all()
    ):
        found.append("y")  # an example, or all of them, that the loss leaves out
    return found


def labels(problem):
    return torch.from_numpy(plain(problem.y).astype(np.int64))


# How an argument is named in a message.
NAMES = {
    "X": r"\bX\b",
    "y": r"\by\b|labels|targets|class indices",
    "theta": "θ|theta",
    "u": r"\bu\b",
    "indices": r"indices|index -?\d+ is out of bounds",
    "batches": r"batches|index -?\d+ is out of bounds",
    "v": r"\bv\b",
}


def named(error, name):
    """Return whether an error is one about an argument, by its name."""
    # A FloatingPointError tells of a θ that is known to be wild by its results alone.
    kind = isinstance(error, ValueError | TypeError | FloatingPointError | IndexError)
    return kind and re.search(NAMES.get(name, rf"\b{name}\b"), str(error))


class Session:
    """A risk, where it is asked, and its reference; also of some of the examples."""

    def __init__(self, data, problem):
        self.data, self.problem = data, problem
        self.risk = make(problem)

    def go_to(self, theta):
        self.theta = theta
        self.reference = Reference.of(self.problem, theta)

    def ask(self, name, part=None):
        quantity, n = QUANTITIES[name], self.problem.n_examples
        risk, ref = self.risk, self.reference
        if part is not None:
            risk, ref, n = risk.subset(part), ref.subset(part), len(part)
        arg = self.data.draw(quantity.arg(self.problem, n), label=name)
        try:
            found = quantity.ask(risk, self.theta, arg)
        except ValueError as error:
            # Differences of its slope are wrong next to the kink; the loss is named.
            if "second derivative of HuberLoss" not in str(error):
                raise
        else:
            compare(name, found, ref, arg)


plausible = problems().filter(lambda problem: not odd(problem))


def test_right():
    outcomes = Counter()

    @settings(max_examples=300 * EXAMPLES)
    @given(data=st.data(), problem=problems())
    def run(data, problem):
        outcomes[right_or_refused(data, problem)] += 1

    run()
    # A risk that refuses everything is never wrong.
    assert outcomes["right"] > 0.7 * outcomes.total(), outcomes


def right_or_refused(data, problem):
    before = plain(problem.X)
    try:
        session = Session(data, problem)
    except Exception as error:
        if not any(named(error, name) for name in odd(problem)):
            raise
        return "refused"
    n = problem.n_examples
    for _ in range(data.draw(st.integers(1, 2), label="places")):
        session.go_to(data.draw(vectors(problem.n_params), label="theta"))
        names = data.draw(st.lists(some(list(QUANTITIES)), min_size=1, max_size=4))
        for name in names:
            session.ask(name)
        if data.draw(st.booleans(), label="of a subset"):
            m = data.draw(st.integers(1, 6))
            session.ask(names[0], data.draw(index_vectors(n, m), label="indices"))
    assert (plain(problem.X) == before).all()
    return "right"


@settings(max_examples=30 * EXAMPLES)
@given(data=st.data(), problem=plausible)
def test_right_when_traced(data, problem):
    with mock.patch.object(graphs, "_WORTH_A_GRAPH", 0):
        session = Session(data, problem)
        name = data.draw(some(LINEAR))
        for seed in range(2):
            session.go_to(vector(seed, problem.n_params))
            session.ask(name)


@settings(max_examples=250 * EXAMPLES)
@given(data=st.data(), problem=plausible)
def test_refused_at_construction(data, problem):
    faults = at_construction(problem)
    name = data.draw(some(list(faults)), label="at fault")
    bad = data.draw(st.one_of(faults[name]), label="bad")
    if name == "loss":
        bad = replace(problem.loss, given=bad)
    try:
        make(problem.but(**{name: bad}))
    except Exception as error:
        if not named(error, name):
            raise
    else:
        raise AssertionError(f"{name} was taken")


@settings(max_examples=250 * EXAMPLES)
@given(data=st.data(), problem=plausible)
def test_right_or_refused_when_asked(data, problem):
    risk, n = make(problem), problem.n_examples
    name = data.draw(some(list(QUANTITIES)), label="quantity")
    quantity = QUANTITIES[name]
    theta = vector(data.draw(seeds), problem.n_params)
    arg = data.draw(quantity.arg(problem, n))
    arguments = ["theta", quantity.arg_name or "theta"]
    at_fault = data.draw(some(arguments), label="at fault")
    if at_fault == "theta":
        kinds = bad_vectors(theta)
    elif name in CHOOSING:
        kinds = bad_indices(n, arg)
    else:
        kinds = bad_vectors(arg.detach())
    kind = data.draw(some(list(kinds)), label="kind")
    bad, meant = kinds[kind]
    if at_fault == "theta":
        handed, right = (bad, arg), (meant, arg)
    else:
        handed, right = (theta, bad), (theta, meant)
    try:
        found = quantity.ask(risk, *handed)
    except Exception as error:
        if not named(error, at_fault):
            raise
        right = (theta, arg)  # is not forgotten over it
        found = quantity.ask(risk, *right)
    else:
        taken = f"{name} took a bad {at_fault}, {kind}: {found.tolist()}"
        assert meant is not None, taken
    compare(name, found, Reference.of(problem, right[0]), right[1])
