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

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes from a gzip-compressed IDX file.

    Parameters
    ----------
    path : Path
        The file, usually called ``*-ubyte.gz``.

    Returns
    -------
    array : ndarray of uint8
        The array, read-only, in the shape that the header states.

    Raises
    ------
    OSError
        If the file cannot be opened, is not a complete gzip file, or does not hold
        an IDX array of unsigned bytes.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte.gz"
    ...     write_idx(path, np.array([9, 0, 3], dtype=np.uint8))
    ...     read_idx(path)
    array([9, 0, 3], dtype=uint8)
    """
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OSError(
            f"{path} is not a complete gzip file ({error}). Copy or download it again."
        ) from error
    zeros, code, n_axes = struct.unpack(">HBB", content[:4].ljust(4, b"\xff"))
    if zeros != 0 or code != _UNSIGNED_BYTE:
        raise OSError(
            f"{path} must be an IDX file of unsigned bytes, whose first bytes are "
            f"00 00 08. Got {content[:3].hex(' ') or 'an empty file'}; replace it by "
            "the original."
        )
    start = 4 + 4 * n_axes
    shape = tuple(
        int.from_bytes(content[offset : offset + 4], "big")
        for offset in range(4, start, 4)
    )
    n_bytes = start + math.prod(shape)
    if len(content) != n_bytes:
        raise OSError(
            f"{path} must hold {n_bytes} bytes, since its header states the shape "
            f"{shape}. Got {len(content)} bytes; replace it by the original."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


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
