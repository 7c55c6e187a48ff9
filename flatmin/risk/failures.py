"""Why a way to a quantity cannot be taken: its exceptions, and one line about any."""

from __future__ import annotations

import logging
import textwrap
import traceback
from pathlib import Path

from torch.utils.checkpoint import CheckpointError

from flatmin._utils.messages import message

__all__ = ["NotTaken", "UnsupportedLayers", "explain"]

_logger = logging.getLogger("flatmin.risk")
_HERE = str(Path(__file__).parent)


class NotTaken(Exception):  # noqa: N818 - asks for another way
    """A way to compute a quantity does not serve; the message says why."""


class UnsupportedLayers(NotTaken):
    """A parameter is used in a way whose rows are not known."""


def explain(error: Exception) -> str:
    """Say in one line why a way failed, and log the rest.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    str
    """
    if isinstance(error, NotTaken):
        return message(error)
    if isinstance(error, CheckpointError):
        return _CHECKPOINT
    reason = f"{type(error).__name__}: {_first_sentence(message(error))}"
    if _is_our_own(error):
        _logger.error("A fault of flatmin sends it to a slower path.", exc_info=error)
    else:
        _logger.debug("A path was not taken. %s", reason, exc_info=error)
    return reason


_CHECKPOINT = (
    "the module computes parts again (torch.utils.checkpoint); a product keeps what "
    "checkpoints let go"
)


def _first_sentence(text: str) -> str:
    return textwrap.shorten(text.split(". ")[0], 120, placeholder=" ...")


def _is_our_own(error: Exception) -> bool:
    # PyTorch says with a RuntimeError, a NotImplementedError or a ValueError what it
    # cannot do; any other that begins in this folder is a mistake in it.
    if isinstance(error, RuntimeError | ValueError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    # A function of the module's, handed on by one of the modes that watch it.
    if frames and frames[-1].name == "__torch_function__":
        return False
    file = frames[-1].filename if frames else ""
    return str(getattr(error, "raised_in", file)).startswith(_HERE)
