"""The IDX format, in which MNIST and its successors are distributed.

A file is a big-endian header, then the array in row-major order: two zero bytes, one
byte for the type (0x08: unsigned bytes, the only one here), one byte for the number of
axes, and the length of each axis as a 32-bit unsigned integer.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from flatmin._utils.regular_files import open_regular

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes from a gzip-compressed IDX file.

    No more is decompressed than an array of this shape takes, since a file of some
    megabytes may grow to gigabytes.

    Parameters
    ----------
    path : Path
        The file, usually called ``*-ubyte.gz``.

    shape : tuple of int
        The shape that its array must have.

    Returns
    -------
    array : ndarray of uint8
        The array, read-only.

    Raises
    ------
    OSError
        If the file cannot be opened, is not a complete gzip file, or does not hold
        an IDX array of unsigned bytes and of this shape.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte.gz"
    ...     write_idx(path, np.array([9, 0, 3], dtype=np.uint8))
    ...     read_idx(path, shape=(3,))
    array([9, 0, 3], dtype=uint8)
    """
    n_bytes = math.prod(shape)
    try:
        with open_regular(path) as file, gzip.open(file, "rb") as stream:
            got = _shape_in_header(stream, path)
            if got != shape:
                raise OSError(
                    f"{path} must hold an array of shape {shape}. Got shape {got}; "
                    "replace it by the original."
                )
            # One byte too many, to reach the end and with it the gzip file's checksum.
            content = stream.read(n_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OSError(
            f"{path} is not a complete gzip file ({error}). Copy or download it again."
        ) from error
    if len(content) != n_bytes:
        found = f"{len(content)} bytes" if len(content) < n_bytes else "more"
        raise OSError(
            f"{path} must hold {n_bytes} bytes after its header, since that states the "
            f"shape {shape}. Got {found}; replace it by the original."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _shape_in_header(stream: gzip.GzipFile, path: Path) -> tuple[int, ...]:
    start = stream.read(4)
    zeros, code, n_axes = struct.unpack(">HBB", start.ljust(4, b"\xff"))
    if zeros != 0 or code != _UNSIGNED_BYTE:
        raise OSError(
            f"{path} must be an IDX file of unsigned bytes, whose first bytes are "
            f"00 00 08. Got {start[:3].hex(' ') or 'an empty file'}; replace it by "
            "the original."
        )
    lengths = stream.read(4 * n_axes)
    if len(lengths) != 4 * n_axes:
        raise OSError(
            f"{path} must begin with {4 + 4 * n_axes} bytes of header, since it states "
            f"{n_axes} axes. Got {4 + len(lengths)} bytes; replace it by the original."
        )
    return struct.unpack(f">{n_axes}I", lengths)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of unsigned bytes to a gzip-compressed IDX file.

    The file appears under its name only when it is complete, so that another process
    never reads half of it.

    Parameters
    ----------
    path : Path
        The file; replaced if it exists. Its folder must exist.

    array : ndarray of uint8
        What to write.
    """
    header = struct.pack(
        f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape
    )
    with TemporaryDirectory(dir=path.parent) as scratch:
        unfinished = Path(scratch) / path.name
        with gzip.open(unfinished, "wb") as stream:
            stream.write(header + array.tobytes())
        unfinished.replace(path)
