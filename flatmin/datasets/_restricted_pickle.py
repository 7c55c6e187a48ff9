"""Reading a pickle of plain values and byte arrays without running its code.

A pickle may call anything that it can name, which is how a downloaded file could take
over a machine. Here it can name nothing but what NumPy needs to rebuild an array of
unsigned bytes.
"""

import codecs
import pickle
from typing import IO, Any

import numpy as np

# The function that array pickles call. It lives in numpy.core.multiarray for NumPy 1
# and in numpy._core.multiarray for NumPy 2, and neither is public.
_reconstruct: Any = np.empty(0).__reduce__()[0]


def load_plain_pickle(stream: IO[bytes], *, source: str) -> Any:
    """Load a pickle that holds only plain values and arrays of unsigned bytes.

    Parameters
    ----------
    stream : binary file
        Where the pickle begins.

    source : str
        What to call the pickle in an error.

    Returns
    -------
    content : object
        What the pickle holds. Strings that Python 2 wrote are bytes.

    Raises
    ------
    OSError
        If the pickle is damaged, or names a function or class that is not needed for
        an array of unsigned bytes. Nothing that it names has run then.

    Examples
    --------
    >>> import io, pickle
    >>> stream = io.BytesIO(pickle.dumps({"labels": [6, 9]}))
    >>> load_plain_pickle(stream, source="labels")
    {'labels': [6, 9]}
    >>> stream = io.BytesIO(pickle.dumps(print))
    >>> load_plain_pickle(stream, source="labels")
    Traceback (most recent call last):
        ...
    OSError: labels must be a pickle of plain values and arrays of unsigned bytes...
    """
    try:
        return _PlainUnpickler(stream, encoding="bytes").load()
    except OSError:
        raise
    # A damaged pickle makes the unpickler raise almost anything.
    except Exception as error:
        raise OSError(
            f"{source} must be a pickle of plain values and arrays of unsigned bytes. "
            f"Got {type(error).__name__}: {error}. Nothing in it was run; replace it "
            "by the original."
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}"
            ) from None


def _unsigned_byte(name: str | bytes, *flags: object) -> np.dtype[np.uint8]:
    # Files of Python 2 hold the flags as integers, about which NumPy 2.4 warns. Their
    # values are always these two: the pickle goes on to alter the copy.
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"the pickle holds an array of type {name!r}")
    return np.dtype("u1", align=False, copy=True)


_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _unsigned_byte,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    # Python 3 writes bytes so, for protocols that Python 2 can read.
    ("_codecs", "encode"): codecs.encode,
}
