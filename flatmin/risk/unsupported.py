"""What a kernel raises to ask for another path."""

from __future__ import annotations

__all__ = ["UnsupportedLayers"]


class UnsupportedLayers(Exception):  # noqa: N818 - asks for another path
    """A parameter is used in a way whose rows are not known."""
