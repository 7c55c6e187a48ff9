"""What a kernel raises to ask for another path."""

from __future__ import annotations

__all__ = ["UnsupportedLayers"]


class UnsupportedLayers(Exception):  # noqa: N818 - asks for another path
    """The parameters are not all those of layers whose rows are known."""
