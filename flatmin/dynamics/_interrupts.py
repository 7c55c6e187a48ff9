"""Who has raised a KeyboardInterrupt: a callback, or the user."""

from __future__ import annotations

import dis
import functools
import signal
from types import CodeType, TracebackType
from typing import Any

__all__ = ["is_request"]


def is_request(interrupt: KeyboardInterrupt) -> bool:
    """Say whether a callback asks for the end of the training, as skorch's do.

    A callback asks by the statement ``raise KeyboardInterrupt``. The user's Ctrl-C, and
    what another thread or a debugger sets off, comes between two instructions. Where
    the application has a handler of its own for Ctrl-C, that one may raise by a
    statement: it is then among the frames.

    Parameters
    ----------
    interrupt : KeyboardInterrupt
        Caught, with its traceback.

    Returns
    -------
    bool
    """
    # Only the instruction tells the two apart: both exceptions are alike. A handler
    # that notes the signal would not see what is raised in a thread by
    # PyThreadState_SetAsyncExc, and would replace that of the application.
    handler = _code_of(signal.getsignal(signal.SIGINT))
    trace: TracebackType | None = interrupt.__traceback__
    opcode = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code is handler:
            return False
        opcode = code.co_code[trace.tb_lasti]
        trace = trace.tb_next
    return opcode == dis.opmap["RAISE_VARARGS"]


def _code_of(handler: Any) -> CodeType | None:
    """Return the code of a handler in Python; None for one in C, or for none."""
    while isinstance(handler, functools.partial):  # asyncio's
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__  # an object that can be called
    return getattr(handler, "__code__", None)
