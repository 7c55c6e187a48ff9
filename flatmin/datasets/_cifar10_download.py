"""Downloading CIFAR-10: the original archive, or the same images from OpenML."""

import pickle
import shutil
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import numpy as np
from sklearn.datasets import fetch_openml

from flatmin.datasets._cifar10_files import (
    ARCHIVE,
    BATCH_FOLDER,
    ORIGINAL,
    Batch,
    how_to_get_it,
    origin_of,
    read_batches,
)

URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
# A download may take longer, but not be silent for longer.
_TIMEOUT_SECONDS = 60


def download(folder: Path) -> Path:
    """Download CIFAR-10, from its homepage if that answers and else from OpenML.

    Parameters
    ----------
    folder : Path
        Where to put it; made if it does not exist.

    Returns
    -------
    source : Path
        What was written: the archive, or a folder of batches. It holds all six
        batches, and their checksums are those of the original.

    Raises
    ------
    OSError
        If neither place can be reached, or neither holds the original.
    """
    try:
        return _from_homepage(folder)
    except (OSError, HTTPException) as homepage_error:
        try:
            return _from_openml(folder)
        except OSError as openml_error:
            raise OSError(
                f"CIFAR-10 was not found on this machine and could be downloaded "
                f"neither from {URL} ({homepage_error}) nor from OpenML "
                f"({openml_error}). {how_to_get_it(folder)}"
            ) from openml_error


def _from_homepage(folder: Path) -> Path:
    with urlopen(URL, timeout=_TIMEOUT_SECONDS) as response:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            unfinished = Path(scratch) / ARCHIVE
            with open(unfinished, "wb") as stream:
                shutil.copyfileobj(response, stream)
            origin = origin_of(read_batches(unfinished, tuple(ORIGINAL)))
            if origin != "original":
                raise OSError(f"the images there are not the original: {origin}")
            return unfinished.replace(folder / ARCHIVE)


def _from_openml(folder: Path) -> Path:
    openml = fetch_openml(
        "CIFAR_10",
        version=1,
        as_frame=False,
        data_home=str(folder.parent),
        parser="pandas",
    )
    parts = map(
        Batch,
        np.array_split(openml.data.astype(np.uint8), len(ORIGINAL)),
        np.array_split(openml.target.astype(np.uint8), len(ORIGINAL)),
    )
    # OpenML does not say in which order it holds the batches; the checksums do.
    by_sha1 = {part.sha1(): part for part in parts}
    if set(by_sha1) != set(ORIGINAL.values()):
        raise OSError(
            "the images there are not the six batches of the original, so the test set "
            "cannot be told from the training set"
        )
    destination = folder / BATCH_FOLDER
    destination.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        for name, sha1 in ORIGINAL.items():
            part = by_sha1[sha1]
            content = {b"data": part.pixels, b"labels": part.labels.tolist()}
            unfinished = Path(scratch) / name
            with open(unfinished, "wb") as stream:
                pickle.dump(content, stream, protocol=2)
            unfinished.replace(destination / name)
    return destination
