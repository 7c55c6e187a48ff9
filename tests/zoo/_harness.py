"""Ask flatmin for every quantity of a kind, and judge each answer.

A cell is "right", "refused: ..." with the sentence, "wrong: ..." with the relative
error, or "crash: ..." with an exception that flatmin did not raise to tell something.
"""

import re
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import flatmin
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from ._oracle import QUANTITIES, compute, direction, in_float64

__all__ = ["Kind", "build", "examine", "failures", "verdicts"]

TOLERANCE = 1e-6
CHUNKS = (None, 3, 1)  # None: all in one
# In the tests a kind has it in one chunk size: it takes as long as all others together.
COSTLY = "ΣHᵢ²v/N"
# What a trace computes; everything else is one code on both paths. A trace takes some
# 0.1 s: in the tests a kind has H v and one of the others, in chunks of 3, of which the
# last is filled up.
TRACED = ("H v", "G v", "J v", "Jᵀu", "gᵢᵀv")
_HERE = str(Path(flatmin.__file__).parent)


@dataclass(frozen=True)
class Kind:
    """A network, its loss and data, and what is known of them beforehand."""

    module: nn.Module
    X: torch.Tensor
    y: torch.Tensor
    loss: Any = "cross_entropy"
    # ℓ̃ᵢ of one example, in functions that PyTorch differentiates twice; None where the
    # loss itself is such a function.
    per_example: Callable | None = None
    # The same network in such functions, with the same parameters.
    reference: nn.Module | None = None
    # What H v is compared with: "autograd", "difference" of the gradient, "unchecked"
    # for a module whose gradient is not the derivative of its value, "refused".
    second: str = "autograd"
    # A part of the sentence: for all quantities, or by quantity.
    refused: str | dict | None = None
    trains: bool = False  # the layer differs in eval mode only by what it draws
    options: dict = field(default_factory=dict)  # of EmpiricalRisk

    @property
    def together(self):
        """Whether the statistics of all examples count, so that they are one chunk."""
        return self.options.get("batch_norm") == "batch"

    def loss_of(self, output, target):
        """Return ℓ̃ᵢ of one output, a number."""
        if self.per_example is not None:
            return self.per_example(output, target).mean()
        if self.loss == "cross_entropy":
            return F.cross_entropy(output, target)
        if self.loss == "squared_error":
            return (output - target).square().mean()
        if isinstance(self.loss, nn.Module):
            return _unreduced(self.loss)(output, target).mean()
        return self.loss(output, target).mean()

    def expects(self, quantity):
        """Return a part of the sentence that refuses a quantity, or None."""
        if isinstance(self.refused, dict):
            return self.refused.get(quantity)
        return self.refused


def _unreduced(loss):
    loss = in_float64(loss)
    loss.reduction = "none"
    return loss


def build(builder):
    """Return the kind of a builder, whatever else is drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lazy modules, old weight_norm
            kind = builder()
    kind.module.train(kind.trains)
    return kind


def examine(kind, name, *, full=False, brief=False):
    """Return a cell for each path, chunk size and quantity.

    Parameters
    ----------
    kind : Kind
    name : str
        Decides which traced product is asked for besides H v, and where Σ Hᵢ² v is.
    full : bool, default=False
        Whether everything is asked for in every chunk size.
    brief : bool, default=False
        Whether the reference path is asked in one chunk size only.

    Returns
    -------
    dict of (str, int or None, str) to str
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A kind that is to be refused altogether has no right value.
        right = None if isinstance(kind.refused, str) else compute(kind)
        cells = {}
        draw = zlib.crc32(name.encode())
        chunk_sizes = CHUNKS[:1] if kind.together else CHUNKS
        if not (full or kind.together):  # with 3, where it is traced, one of the others
            chunk_sizes = (3, (None, 1)[draw % 2])
        costly_at = chunk_sizes[draw // 2 % len(chunk_sizes)]
        for chunk_size in chunk_sizes:
            for path in ("reference", "graph"):
                asked = [
                    quantity
                    for quantity in QUANTITIES
                    if full or quantity != COSTLY or chunk_size == costly_at
                ]
                if path == "graph":
                    is_asked = kind.together or chunk_size == 3
                    asked = TRACED if full else _in_turn(name) if is_asked else ()
                elif brief and chunk_size != costly_at:
                    continue
                for quantity, cell in _ask(kind, right, path, chunk_size, asked):
                    cells[path, chunk_size, quantity] = cell
    return cells


def _in_turn(name):
    return ("H v", TRACED[1 + zlib.crc32(name.encode()) % (len(TRACED) - 1)])


def always_traced():
    """Return a context in which small problems are traced, too."""
    return mock.patch.object(graphs, "_WORTH_A_GRAPH", 0)


def _ask(kind, right, path, chunk_size, asked):
    """Yield quantity and cell."""
    if not asked:
        return
    try:
        risk = EmpiricalRisk(
            kind.module,
            kind.loss,
            kind.X,
            kind.y,
            dtype="float64",
            chunk_size=chunk_size,
            **kind.options,
        )
    except Exception as error:
        yield from ((quantity, _failure(error)) for quantity in asked)
        return
    theta = risk.params()
    point = risk.linearize(theta)
    v, u = direction(len(theta)), direction(len(kind.X), *risk.output_shape)
    ways = {
        "value": lambda: risk.value(theta),
        "gradient": lambda: risk.gradient(theta),
        "rows": lambda: torch.cat(list(risk.per_example_gradients(theta))),
        "diag Σ": lambda: risk.gradient_variances(theta),
        "‖gᵢ‖²": lambda: risk.squared_norms(theta),
        "H v": lambda: point.hvp(v),
        "G v": lambda: point.ggn(v),
        "J v": lambda: point.jvp(v),
        "Jᵀu": lambda: point.vjp(u),
        "gᵢᵀv": lambda: point.directional_derivatives(v),
        "Tr Gᵢ": lambda: risk.gauss_newton_traces(theta),
        "ΣHᵢ²v/N": lambda: risk.squared_hessian_product(theta, v),
    }
    for quantity in asked:
        try:
            if path == "graph":
                with always_traced():
                    found = ways[quantity]()
            else:
                found = ways[quantity]()
        except Exception as error:
            yield quantity, _failure(error)
        else:
            yield quantity, _judged(found, None if right is None else right[quantity])


def _judged(found, right):
    if right is None or right.isnan().all():
        return "wrong: a number, where none is defined"
    if found.shape != right.shape:
        return f"wrong: the shape {tuple(found.shape)}"
    unknown = right.isnan()
    if not torch.equal(found.isnan(), unknown):
        return "wrong: NaN"
    off = (found - right)[~unknown].norm()
    size = right[~unknown].norm()
    off = float(off / size if size else off)
    return "right" if off < TOLERANCE else f"wrong: off by {off:.0e}"


def _failure(error):
    """Return the cell of an exception: refused, or a crash."""
    text = str(error).strip()
    told = isinstance(error, ValueError | TypeError | NotImplementedError)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = getattr(error, "raised_in", frame.filename).startswith(_HERE)
    if told and ours and frame.line.startswith("raise") and " " in text:
        return f"refused: {_sentence(text)}"
    return f"crash: {type(error).__name__}: {text.splitlines()[0] if text else ''}"


def _sentence(text):
    """Return the first sentence, without numbers that differ between machines."""
    text = re.sub(r"\d+(\.\d+)?e[-+]\d+", "…", " ".join(text.split()))
    return re.split(r"(?<=[.:;]) ", text, maxsplit=1)[0].rstrip(":;")


def failures(kind, cells):
    """Return what must not be, one line for each cell that is said."""
    found = {}
    for (path, chunk_size, quantity), cell in cells.items():
        expected = kind.expects(quantity)
        good = cell == "right"
        if expected is not None:
            good = cell.startswith("refused") and expected in cell
        if not good:
            where = f"{path} path, {_cut(chunk_size)}"
            found.setdefault(cell, {}).setdefault(where, []).append(quantity)
    return [
        f"{cell} [{where}] {', '.join(quantities)}"
        for cell, places in found.items()
        for where, quantities in places.items()
    ]


def _cut(chunk_size):
    return "whole" if chunk_size is None else f"chunks of {chunk_size}"


def verdicts(cells, path):
    """Return quantities of a path by what is said of them; not how far one is off.

    Returns
    -------
    dict of str to list of str
        The keys are "right", "refused: ...", "wrong" and "crash".
    """
    found = {}
    for (where, _, quantity), cell in cells.items():
        said = cell if cell.startswith("refused") else cell.split(":")[0]
        names = found.setdefault(said, [])
        if where == path and quantity not in names:
            names.append(quantity)
    return {said: names for said, names in found.items() if names}
