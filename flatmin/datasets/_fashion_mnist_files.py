"""Where the files of Fashion-MNIST are, and whether they are the right ones."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml

from flatmin._utils.regular_files import is_there
from flatmin.datasets._homes import ENVIRONMENT_VARIABLE, homes
from flatmin.datasets._idx import read_idx, write_idx

FOLDER = "fashion-mnist"
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"


class IdxFile(NamedTuple):
    """A file of the data set and what it must contain."""

    filename: str
    shape: tuple[int, ...]
    # The hash of the array's bytes, not of the file, so that it holds for any
    # compression and for the copy on OpenML.
    sha256: str


class Split(NamedTuple):
    """The two files of the training or of the test set."""

    images: IdxFile
    labels: IdxFile


FILES = {
    "train": Split(
        IdxFile(
            "train-images-idx3-ubyte.gz",
            (60_000, 28, 28),
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        ),
        IdxFile(
            "train-labels-idx1-ubyte.gz",
            (60_000,),
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        ),
    ),
    "test": Split(
        IdxFile(
            "t10k-images-idx3-ubyte.gz",
            (10_000, 28, 28),
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte.gz",
            (10_000,),
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    ),
}


def find_files(
    splits: Sequence[str],
    *,
    data_home: str | os.PathLike[str] | None,
    download_if_missing: bool,
) -> Path:
    """Find the folder that holds the files of some splits, or make one from OpenML.

    Parameters
    ----------
    splits : sequence of {"train", "test"}
        The splits whose files are needed.

    data_home : str, path-like or None
        Parent of the folder. None stands for the environment variable FLATMIN_DATA,
        and after that for scikit-learn's data folder.

    download_if_missing : bool
        Whether to download the data set if the files are in none of these places.

    Returns
    -------
    folder : Path
        The folder; the contents of its files are not checked yet.

    Raises
    ------
    OSError
        If the files are not there and cannot, or may not, be downloaded, or if
        something else than a file is there.
    """
    needed = [file.filename for split in splits for file in FILES[split]]
    searched = []
    for home in homes(data_home):
        folder = home / FOLDER
        found = [is_there(folder / filename) for filename in needed]
        if all(found):
            return folder
        searched.append(folder)
    if not download_if_missing:
        raise OSError(
            f"Fashion-MNIST was not found and download_if_missing is False. Looked for "
            f"{', '.join(needed)} in {' and in '.join(map(str, searched))}. "
            f"{_how_to_get_it(searched[-1])}"
        )
    _download(searched[-1])
    return searched[-1]


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read and verify the images and labels of one split.

    Parameters
    ----------
    folder : Path
        Folder of the files.

    split : {"train", "test"}
        Which split.

    Returns
    -------
    images : ndarray of shape (n_samples, 28, 28), dtype=uint8
        The images, read-only.

    labels : ndarray of shape (n_samples,), dtype=uint8
        The labels 0 to 9, read-only.

    Raises
    ------
    OSError
        If a file is unreadable, damaged, or not the original.
    """
    images, labels = (_read_verified(folder, file) for file in FILES[split])
    return images, labels


def _read_verified(folder: Path, file: IdxFile) -> NDArray[np.uint8]:
    array = read_idx(folder / file.filename, file.shape)
    _verify(
        array,
        file,
        source=str(folder / file.filename),
        remedy=f"Replace it by the original file from {HOMEPAGE}, or delete it to have "
        "it made again from OpenML.",
    )
    return array


def _verify(
    array: NDArray[np.uint8], file: IdxFile, *, source: str, remedy: str
) -> None:
    if array.shape != file.shape:
        raise OSError(
            f"{source} must hold an array of shape {file.shape}. Got shape "
            f"{array.shape}. {remedy}"
        )
    sha256 = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if sha256 != file.sha256:
        raise OSError(
            f"{source} must hold an array whose bytes have the SHA-256 checksum "
            f"{file.sha256}. Got {sha256}. {remedy}"
        )


def _download(folder: Path) -> None:
    home = folder.parent
    missing = {
        file
        for files in FILES.values()
        for file in files
        if not is_there(folder / file.filename)
    }
    try:
        openml = fetch_openml(
            "Fashion-MNIST",
            version=1,
            as_frame=False,
            data_home=str(home),
            parser="pandas",
        )
    except OSError as error:
        raise OSError(
            f"Fashion-MNIST was not found on this machine and could not be downloaded "
            f"from OpenML ({error}). {_how_to_get_it(folder)}"
        ) from error
    n_train, *image_shape = FILES["train"].images.shape
    images = openml.data.astype(np.uint8).reshape(-1, *image_shape)
    labels = openml.target.astype(np.uint8)
    # OpenML holds the training examples first, then the test examples; the checksums
    # would tell if it did not.
    contents = {
        "train": (images[:n_train], labels[:n_train]),
        "test": (images[n_train:], labels[n_train:]),
    }
    pairs = [
        (file, array)
        for split, arrays in contents.items()
        for file, array in zip(FILES[split], arrays, strict=True)
    ]
    for file, array in pairs:
        _verify(
            array,
            file,
            source=f"OpenML's copy of {file.filename}",
            remedy=f"Delete the folder {home / 'openml'} and try again. If that does "
            f"not help: {_how_to_get_it(folder)}",
        )
    # fetch_openml would parse its text file anew at every call; the IDX files also let
    # download_if_missing=False find what was downloaded before.
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in pairs:
        if file in missing:
            write_idx(folder / file.filename, array)


def _how_to_get_it(folder: Path) -> str:
    filenames = ", ".join(file.filename for split in FILES.values() for file in split)
    return (
        f"Put the files {filenames} from {HOMEPAGE} into {folder}; or into a folder "
        f"'{FOLDER}' anywhere else, and give the path of its parent as data_home or in "
        f"the environment variable {ENVIRONMENT_VARIABLE}."
    )
