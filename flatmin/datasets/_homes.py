"""The folders in which data sets are looked for."""

import os
from collections.abc import Iterator
from pathlib import Path

from flatmin._utils.paths import check_path

ENVIRONMENT_VARIABLE = "FLATMIN_DATA"


def homes(data_home: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield the folders to search for a data set, the one to download to last.

    Parameters
    ----------
    data_home : str, path-like or None
        The only folder to search. None stands for the one that the environment
        variable FLATMIN_DATA names, and after that for scikit-learn's data folder.

    Yields
    ------
    home : Path
        A folder, which need not exist.
    """
    if data_home is not None:
        check_path("data_home", data_home)
        yield Path(data_home).expanduser()
        return
    if from_environment := os.environ.get(ENVIRONMENT_VARIABLE):
        yield Path(from_environment).expanduser()
    # This is scikit-learn's documented default. Its get_data_home would create it.
    default = os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")
    yield Path(default).expanduser()
