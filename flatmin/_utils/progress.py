"""A progress bar that costs nothing when nobody looks."""

from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int, description: str, *, verbose: bool | int) -> Any:
    """Return a tqdm bar on standard error, silent unless ``verbose``.

    Parameters
    ----------
    total : int
        Number of steps.
    description : str
        Text before the bar.
    verbose : bool or int
        Falsy disables the bar.

    Returns
    -------
    tqdm.tqdm
        With ``update(n)``, ``set_postfix`` and ``close()``.
    """
    return tqdm(total=total, desc=description, disable=not verbose, leave=True)
