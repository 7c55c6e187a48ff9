"""One argument replaced: what comes of it."""

from __future__ import annotations

import contextlib
import io
import math
import re
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flatmin import DivergenceError
from flatmin.comparison import ComparisonResult
from flatmin.dynamics import NoisyDescent

from ._calls import Call, Counting, tidy, wrong_parameters
from ._values import spoilt_values, wrong_values

_SECONDS = 20
# A refusal may speak of a parameter by its symbol, or of what it is a part of.
_ALSO = {
    "theta": ("θ", "params"),
    "thetas": ("θ",),
    "point": ("v",),
    "X": ("data", "examples", "y"),
    "y": ("labels", "targets", "X"),
    "X_test": ("X",),
    "y_test": ("y", "X_test"),
    "X_val": ("X", "y_val"),
    "y_val": ("y", "X_val"),
    "k": ("n_components",),
    "n_components": ("k",),
    "module": ("The module",),
    "module_params": ("parameter of the module",),
    "method": ("method",),
    "methods": ("method", "Labels"),
    "method_params": ("setting of",),
    "optimizer_params": ("parameter of the optimizer",),
    "loss": ("The loss",),
    "n_seeds": ("Seeds", "seed"),
    "estimator": ("model", "Display"),
    "path": (),
    "patterns": ("select",),
    "measure_params": ("option of the measure",),
    "name": ("method", "parameter", "model"),
    "phases": ("phase",),
    "quantities": ("quantity",),
    "columns": ("column",),
}


@dataclass(frozen=True)
class Outcome:
    """Of one call with one wrong argument."""

    call: str
    parameter: str
    value: str
    kind: str  # accepted, nan, refused, unclear, late, crashed, hung
    message: str


class _TooLongError(BaseException):
    pass


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_call(call: Call, every: int = 1, first: int = 0) -> list[Outcome]:
    """Replace every argument by every n-th wrong value, another first for each."""
    found = []
    for place, parameter in enumerate(wrong_parameters(call)):
        valid = call.arguments()[parameter]
        values = list({**wrong_values(), **spoilt_values(valid)})
        for value in values[(place + first) % every :: every]:
            found.append(try_argument(call, parameter, value))
    return found


def try_argument(call: Call, parameter: str, value: str) -> Outcome:
    """Replace one argument, and sort what comes of it."""
    arguments = call.arguments()
    values = {**wrong_values(), **spoilt_values(arguments[parameter])}
    arguments[parameter] = values[value]
    iterations = _Iterations()
    Counting.calls = 0
    kind, message = "accepted", ""
    try:
        with (
            _limited(),
            iterations,
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            result = call.function(**arguments)
            if hasattr(result, "__next__"):
                result = next(result)
        if isinstance(result, ComparisonResult) and len(result.failures):
            kind, message = "late", str(result.failures["message"].iloc[0])
        elif _has_nan(result) and "nan" not in value and "inf" not in value:
            kind = "nan"
    except _TooLongError:
        kind, message = "hung", f"more than {_SECONDS} s"
    except (DivergenceError, ArithmeticError) as error:
        # Of a right argument: the run, or the number, is not finite.
        kind, message = "refused", f"{type(error).__name__}: {error}"
        if isinstance(error, OverflowError | ZeroDivisionError):
            kind = "crashed"
    except (TypeError, ValueError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
        kind = "refused" if _names(parameter, str(error)) else "unclear"
        done = iterations.n if call.trains else Counting.calls
        if kind == "unclear" and isinstance(error, UnicodeError):
            kind = "crashed"
        elif done:
            kind = "late"
    except LookupError as error:
        message = f"{type(error).__name__}: {error}"
        kind = "refused" if _names(parameter, str(error)) else "crashed"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        kind, message = "crashed", f"{type(error).__name__}: {error}"
    finally:
        tidy()
    return Outcome(call.name, parameter, value, kind, message[:300].replace("\n", " "))


def _names(parameter: str, message: str) -> bool:
    for name in (parameter, *_ALSO.get(parameter, ())):
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", message):
            return True
    return False


class _Iterations:
    """Counts the iterations of all trainings meanwhile."""

    def __enter__(self) -> _Iterations:
        self.n = 0
        self._before = before = NoisyDescent.run

        def run(descent: Any, *args: Any, **options: Any) -> Any:
            try:
                return before(descent, *args, **options)
            finally:
                self.n += descent.iteration

        NoisyDescent.run = run
        return self

    def __exit__(self, *_: object) -> None:
        NoisyDescent.run = self._before


def _has_nan(result: Any) -> bool:
    if isinstance(result, float):
        return math.isnan(result)
    if isinstance(result, torch.Tensor) and result.is_floating_point():
        return not result.is_meta and bool(result.isnan().any())
    if isinstance(result, np.ndarray) and result.dtype.kind == "f":
        return bool(np.isnan(result).any())
    if isinstance(result, tuple):
        return any(_has_nan(part) for part in result)
    value = getattr(result, "value", None)
    return isinstance(value, torch.Tensor) and _has_nan(value)
