"""Where the files of CIFAR-10 are, and what they hold."""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatmin._utils.regular_files import is_there, open_regular
from flatmin.datasets._homes import ENVIRONMENT_VARIABLE, homes
from flatmin.datasets._restricted_pickle import MAX_BYTES, load_plain_pickle

HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SUBFOLDER = "cifar-10"
BATCH_FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
N_PIXELS = 3 * 32 * 32

# The six batches and what may lie beside them. The original takes 186 MB.
_MAX_ARCHIVE_BYTES = 8 * MAX_BYTES
_BLOCK = 512  # of tar

SPLITS = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}

# SHA-1 of the rows (label, pixels) of each batch, a byte each. That is the content of
# the files of CIFAR-10's "binary version", for which MXNet publishes these sums
# (gluon.data.vision.CIFAR10), so they do not depend on the pickle around the arrays.
# They tell copies apart; they are no protection against a forger.
ORIGINAL = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}
# The same sums of a copy whose images went through JPEG compression of quality 75 and
# whose rows are in another order, as libjpeg-turbo 3 decodes it.
RE_ENCODED = {
    "data_batch_1": "b8eb56976c5b571638a47527975c005689f03cf2",
    "data_batch_2": "5af804137e8b2d886e5353f2460acccb3c484271",
    "data_batch_3": "6b2f306284acb3a359ec2d85269e74482236213b",
    "data_batch_4": "e75d8e69079fb3ea80c0e33f7a46cef7ab36ef34",
    "data_batch_5": "56d36b2e587ab4f3de8c7fe9f9c0e29c877e445d",
    "test_batch": "dc838db643ab9aa2037a8dc1400796442372a570",
}


class Batch(NamedTuple):
    """The rows of one of the six files."""

    pixels: NDArray[np.uint8]  # (n, 3072), a channel after the other
    labels: NDArray[np.uint8]  # (n,)

    def sha1(self) -> str:
        """Return the checksum of the labels and pixels, row by row."""
        rows = np.column_stack([self.labels, self.pixels])
        return hashlib.sha1(rows.data, usedforsecurity=False).hexdigest()


def find_source(
    names: Sequence[str], data_home: str | os.PathLike[str] | None
) -> tuple[Path | None, list[Path]]:
    """Find the folder or the archive that holds some batches.

    Parameters
    ----------
    names : sequence of str
        Names of the batches that are needed.

    data_home : str, path-like or None
        Where to look; None stands for the environment variable FLATMIN_DATA, and after
        that for scikit-learn's data folder.

    Returns
    -------
    source : Path or None
        The folder ``cifar-10-batches-py`` or the archive, not opened yet; None if there
        is neither.

    searched : list of Path
        The folders that were searched; the last is the one to download to.

    Raises
    ------
    OSError
        If something else than a file has the name of a batch or of the archive.
    """
    searched = []
    for home in homes(data_home):
        for parent in (home, home / SUBFOLDER):
            folder, archive = parent / BATCH_FOLDER, parent / ARCHIVE
            searched.append(parent)
            found = [is_there(folder / name) for name in names]
            if all(found):
                return folder, searched
            if is_there(archive):
                return archive, searched
    return None, searched


def read_batches(source: Path, names: Sequence[str]) -> dict[str, Batch]:
    """Read some batches from a folder or from the archive.

    Parameters
    ----------
    source : Path
        The folder ``cifar-10-batches-py``, or the archive ``cifar-10-python.tar.gz``,
        which is read without being extracted.

    names : sequence of str
        Names of the batches.

    Returns
    -------
    batches : dict of str to Batch
        The batches, in the order of `names`.

    Raises
    ------
    OSError
        If a batch is missing, damaged or not a batch of CIFAR-10.
    """
    if source.is_dir():
        batches = {}
        for name in names:
            with open_regular(source / name) as stream:
                # One byte too many is enough to refuse a file that is too large.
                content = stream.read(MAX_BYTES + 1)
            batches[name] = _read_batch(content, source=str(source / name))
        return batches
    batches = dict(_read_archive(source, names))
    missing = [name for name in names if name not in batches]
    if missing:
        raise OSError(
            f"{source} must hold {BATCH_FOLDER}/ with {', '.join(names)}. Got no "
            f"{', '.join(missing)}; replace it by the original from {HOMEPAGE}."
        )
    return {name: batches[name] for name in names}


def origin_of(batches: dict[str, Batch]) -> str:
    """Tell by checksums which copy of CIFAR-10 some batches come from.

    Parameters
    ----------
    batches : dict of str to Batch
        The batches by name.

    Returns
    -------
    origin : {"original", "re-encoded", "unknown"}
        The copy that all of them come from; "unknown" if there is none such.
    """
    sums = {name: batch.sha1() for name, batch in batches.items()}
    for origin, known in (("original", ORIGINAL), ("re-encoded", RE_ENCODED)):
        if sums == {name: known[name] for name in sums}:
            return origin
    return "unknown"


def how_to_get_it(folder: Path) -> str:
    """Say where the files come from and where to put them.

    Parameters
    ----------
    folder : Path
        Folder to name for them.

    Returns
    -------
    advice : str
        Sentences for the end of an error.
    """
    return (
        f"Put {ARCHIVE}, the python version of {HOMEPAGE}, or the folder "
        f"{BATCH_FOLDER} that it holds, into {folder} or any other folder, and name "
        f"that as data_home or in the environment variable {ENVIRONMENT_VARIABLE}."
    )


def _read_archive(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Batch]]:
    # Nothing but the headers of plain files is needed, and these bound what is read:
    # tarfile's own reader takes the extended headers of any size into memory.
    wanted = {PurePosixPath(BATCH_FOLDER, name): name for name in names}
    try:
        with open_regular(path) as file, gzip.open(file, "rb") as stream:
            # In the archive's order, since going back would decompress it anew.
            while (block := stream.read(_BLOCK)).strip(b"\0"):
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                source = f"{path}:{header.name}"
                after = stream.tell() + -(-header.size // _BLOCK) * _BLOCK
                if header.size < 0 or after > _MAX_ARCHIVE_BYTES:
                    raise OSError(
                        f"{source} must end within {_MAX_ARCHIVE_BYTES} bytes. Got a "
                        f"size of {header.size}; replace {path} by the original from "
                        f"{HOMEPAGE}."
                    )
                name = wanted.get(PurePosixPath(header.name))
                if name and header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    content = stream.read(min(header.size, MAX_BYTES + 1))
                    # A truncated archive is no damaged pickle.
                    if len(content) < min(header.size, MAX_BYTES + 1):
                        raise EOFError(f"it ends within {header.name}")
                    yield name, _read_batch(content, source=source)
                stream.seek(after)
            # To the end, where the checksum is.
            while stream.read(2**20):
                if stream.tell() > _MAX_ARCHIVE_BYTES:
                    raise OSError(
                        f"{path} must hold {_MAX_ARCHIVE_BYTES} bytes at most. Got "
                        f"more; replace it by the original from {HOMEPAGE}."
                    )
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OSError(
            f"{path} is not a complete archive ({error}). Copy or download it again."
        ) from error


def _read_batch(content: bytes, *, source: str) -> Batch:
    batch = load_plain_pickle(content, source=source)
    got = _problem_of(batch)
    if got:
        raise OSError(
            f"{source} must be a dict with b'data', an array of unsigned bytes of "
            f"shape (n, {N_PIXELS}), and b'labels', a list of n integers from 0 to 9. "
            f"Got {got}; replace it by the original from {HOMEPAGE}."
        )
    return Batch(
        np.ascontiguousarray(batch[b"data"]),
        np.array(batch[b"labels"], dtype=np.uint8),
    )


def _problem_of(batch: Any) -> str:
    if not isinstance(batch, dict):
        return f"a {type(batch).__name__}"
    if not {b"data", b"labels"} <= batch.keys():
        return f"the keys {[key[:20] for key in list(batch)[:9]]}"
    data, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(data, np.ndarray):
        return f"a b'data' of type {type(data).__name__}"
    if data.shape[1] != N_PIXELS:
        return f"b'data' of shape {data.shape}"
    if not isinstance(labels, list):
        return f"b'labels' of type {type(labels).__name__}"
    if len(labels) != len(data):
        return f"{len(data)} rows and {len(labels)} labels"
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        return "labels that are none of 0 to 9"
    return ""
