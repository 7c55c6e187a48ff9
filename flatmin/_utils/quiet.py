"""Ignoring warnings where other threads may be at work."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flatmin._utils.locks import Lock

__all__ = ["ignored"]

_CHANGING = Lock()


@contextmanager
def ignored(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """Ignore warnings of this thread.

    The filters of ``warnings`` are the process's. Where two threads are within
    ``warnings.catch_warnings`` at a time, the one that leaves last puts back what the
    other one had set, for good: an "ignore" would then hide everything (before Python
    3.14). Here one entry comes and goes, and it matches in one thread only.

    Parameters
    ----------
    category : type, default=Warning
    message : str, default=""
        A regular expression for its beginning.
    """
    text = _OfThisThread(message)
    with _CHANGING:
        warnings.filters = [("ignore", text, category, None, 0), *warnings.filters]  # type: ignore[list-item]
    try:
        yield
    finally:
        # Somebody may have kept the list of filters. This one matches nothing there.
        text.thread = None
        with _CHANGING:
            # Another list, since a thread may be going through this one.
            warnings.filters = [f for f in warnings.filters if not _is_over(f)]


class _OfThisThread:
    """A pattern, as ``warnings`` uses it, that matches in the thread that made it."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.IGNORECASE)
        self.thread: int | None = threading.get_ident()

    def match(self, text: str) -> Any:
        """Return a match of the beginning, or None."""
        if threading.get_ident() != self.thread:
            return None
        return self.pattern.match(text)


def _is_over(entry: tuple[Any, ...]) -> bool:
    return isinstance(entry[1], _OfThisThread) and entry[1].thread is None
