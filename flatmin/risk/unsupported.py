"""What a fast way raises to ask for another one."""

from __future__ import annotations

__all__ = ["NotTaken", "UnsupportedLayers"]


class NotTaken(Exception):  # noqa: N818 - asks for another way
    """A way to compute a quantity does not serve; the message says why."""


class UnsupportedLayers(NotTaken):
    """A parameter is used in a way whose rows are not known."""
