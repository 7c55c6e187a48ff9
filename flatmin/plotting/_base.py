"""What all Displays have in common: a pickle holds the numbers, not the drawing."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["BaseDisplay"]


class BaseDisplay:
    """Holds arrays; ``plot`` draws them and keeps what it drew in ``name_``."""

    figure_: Any
    axes_: np.ndarray

    @property
    def ax_(self) -> Any:
        """The first of the axes that ``plot`` drew in."""
        return self.axes_[0]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.endswith("_")}
