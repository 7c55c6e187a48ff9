"""Reading the pickles of CIFAR-10 by a grammar of their own, without running them.

A pickle is a program. An unpickler that forbids all names but NumPy's own is not
enough: ``numpy.ndarray`` alone makes object pointers of the file's bytes, and a single
number in the file reserves gigabytes. So nothing is called here. The few steps that
these files are made of are read one by one, and every other step is refused.
"""

import pickle
from enum import Enum
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

# 10,000 images take 31 MB, and twice that at most where Python 3 wrote them as text.
MAX_BYTES = 64 * 2**20
# An original file takes about 40,000 steps: one for each label, and a few for each
# file name.
_MAX_STEPS = 200_000
_MAX_NAME_BYTES = 100


def load_plain_pickle(content: bytes, *, source: str) -> Any:
    """Load a pickle of plain values and arrays of unsigned bytes, in protocol 2.

    These values are None, booleans, integers, strings, tuples, lists of integers or
    strings, flat dicts whose keys are strings, and arrays of two axes.

    Parameters
    ----------
    content : bytes
        The pickle, of `MAX_BYTES` at most.

    source : str
        What to call the pickle in an error.

    Returns
    -------
    content : object
        What the pickle holds. Strings that Python 2 wrote are bytes. Arrays are views
        of bytes, and so read-only.

    Raises
    ------
    OSError
        If the pickle is damaged, too large, or holds anything else.

    Examples
    --------
    >>> import pickle
    >>> content = pickle.dumps({"labels": [6, 9]}, protocol=2)
    >>> load_plain_pickle(content, source="labels")
    {'labels': [6, 9]}
    >>> load_plain_pickle(pickle.dumps(print, protocol=2), source="labels")
    Traceback (most recent call last):
        ...
    OSError: labels must be a pickle of plain values and arrays of unsigned bytes...
    """
    try:
        if len(content) > MAX_BYTES:
            _refuse(f"more than {MAX_BYTES} bytes")
        return _Reading(content).result()
    except pickle.UnpicklingError as error:
        raise OSError(
            f"{source} must be a pickle of plain values and arrays of unsigned bytes, "
            f"in protocol 2. Got {error}. Nothing in it was run; replace it by the "
            "original."
        ) from error


class _Token(Enum):
    """What stands for a function, a class or an object that is never made."""

    RECONSTRUCT = "the function that array pickles call"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ENCODE = "the function that Python 3 writes bytes with"
    EMPTY_ARRAY = "an array before its state"
    UNSIGNED_BYTE = "the dtype of the arrays"


_NAMES = {
    b"numpy.core.multiarray\n_reconstruct\n": _Token.RECONSTRUCT,  # NumPy 1
    b"numpy._core.multiarray\n_reconstruct\n": _Token.RECONSTRUCT,  # NumPy 2
    b"numpy\nndarray\n": _Token.NDARRAY,
    b"numpy\ndtype\n": _Token.DTYPE,
    b"_codecs\nencode\n": _Token.ENCODE,
}


class _Array:
    """Holds an array, which must not be compared with what a step expects."""

    def __init__(self, content: NDArray[np.uint8]) -> None:
        self.content = content


class _Reading:
    """A pickle that is being read: a stack of values, cut by marks, and a memo."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0
        self.frames: list[list[Any]] = [[]]  # a mark opens another one
        # By key: a list would grow to whatever index the file names.
        self.memo: dict[int, Any] = {}
        # A text that the memo holds could be encoded once for every two bytes.
        self.may_encode = MAX_BYTES

    def result(self) -> Any:
        if self.take(2) != pickle.PROTO + b"\x02":
            _refuse("something that does not begin as protocol 2 does")
        for _ in range(_MAX_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                value = self.pop()
                if self.frames != [[]]:
                    _refuse("values left over at its end")
                return _unwrap(value)
            self.step(code)
        _refuse(f"more than {_MAX_STEPS} steps")

    def step(self, code: bytes) -> None:
        match code:
            case pickle.BINPUT:
                self.memo[self.number(1)] = self.top()
            case pickle.LONG_BINPUT:
                self.memo[self.number(4)] = self.top()
            case pickle.MARK:
                self.frames.append([])
            case pickle.APPEND:
                item = self.pop()
                _extend(self.top(), [item])
            case pickle.APPENDS:
                items = self.pop_frame()
                _extend(self.top(), items)
            case pickle.SETITEM:
                item, key = self.pop(), self.pop()
                _update(self.top(), [key, item])
            case pickle.SETITEMS:
                items = self.pop_frame()
                _update(self.top(), items)
            case _:
                value = self.value(code)  # this may close the frame
                self.frames[-1].append(value)

    def value(self, code: bytes) -> Any:
        """Return what a step that ends in a new value puts on the stack."""
        match code:
            case pickle.NONE:
                return None
            case pickle.NEWTRUE:
                return True
            case pickle.NEWFALSE:
                return False
            case pickle.BININT1:
                return self.number(1)
            case pickle.BININT2:
                return self.number(2)
            case pickle.BININT:
                return self.number(4, signed=True)
            case pickle.SHORT_BINSTRING:
                return self.take(self.number(1))
            case pickle.BINSTRING:
                return self.take(self.number(4, signed=True))
            case pickle.BINUNICODE:
                return _decode(self.take(self.number(4)))
            case pickle.EMPTY_LIST:
                return []
            case pickle.EMPTY_DICT:
                return {}
            case pickle.TUPLE1:
                return (self.pop(),)
            case pickle.TUPLE2:
                return (self.pop(), self.pop())[::-1]
            case pickle.TUPLE3:
                return (self.pop(), self.pop(), self.pop())[::-1]
            case pickle.TUPLE:
                return tuple(self.pop_frame())
            case pickle.BINGET:
                return self.recall(self.number(1))
            case pickle.LONG_BINGET:
                return self.recall(self.number(4))
            case pickle.GLOBAL:
                return self.name()
            case pickle.REDUCE:
                arguments, function = self.pop(), self.pop()
                return self.call(function, arguments)
            case pickle.BUILD:
                state, instance = self.pop(), self.pop()
                return _build(instance, state)
        _refuse(f"the step {code!r}")

    def call(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case _Token.RECONSTRUCT, (_Token.NDARRAY, (0,), "b" | b"b"):
                return _Token.EMPTY_ARRAY
            # The flags are integers where Python 2 wrote them.
            case _Token.DTYPE, ("u1" | b"u1", 0, 1):
                return _Token.UNSIGNED_BYTE
            case _Token.DTYPE, (str(name) | bytes(name), *_):
                _refuse(f"an array of type {name[:20]!r}")
            case _Token.ENCODE, (str(text), "latin1"):
                self.may_encode -= len(text)
                if self.may_encode < 0:
                    _refuse(f"more than {MAX_BYTES} encoded bytes")
                return _encode(text)
        _refuse("a call that no array of unsigned bytes needs")

    def take(self, n_bytes: int) -> bytes:
        end = self.position + n_bytes
        if n_bytes < 0 or end > len(self.content):
            _refuse(f"an end after {len(self.content)} bytes, in the middle of a step")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, n_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(n_bytes), "little", signed=signed)

    def name(self) -> _Token:
        for name, token in _NAMES.items():
            if self.content.startswith(name, self.position):
                self.position += len(name)
                return token
        end = self.position + _MAX_NAME_BYTES
        lines = self.content[self.position : end].split(b"\n")
        asked = b".".join(lines[:2]).decode("ascii", "backslashreplace")
        _refuse(f"a file that asks for {asked}")

    def top(self) -> Any:
        if not self.frames[-1]:
            _refuse("a step that needs a value before it")
        return self.frames[-1][-1]

    def pop(self) -> Any:
        value = self.top()
        del self.frames[-1][-1]
        return value

    def pop_frame(self) -> list[Any]:
        if len(self.frames) == 1:
            _refuse("a step that needs a mark before it")
        return self.frames.pop()

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            _refuse("a step that recalls what was not stored")
        return self.memo[index]


def _extend(target: Any, items: list[Any]) -> None:
    # Flat lists only: nobody needs others, and they could hold themselves.
    if type(target) is not list or not all(
        isinstance(item, int | bytes | str) for item in items
    ):
        _refuse("something else than a list of integers or strings")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    # A key of nested tuples could take forever to hash.
    if (
        type(target) is not dict
        or len(keys) != len(values)
        or not all(isinstance(key, bytes | str) for key in keys)
        or any(isinstance(value, dict) for value in values)
    ):
        _refuse("something else than a flat dict whose keys are strings")
    target.update(zip(keys, values, strict=True))


def _build(instance: Any, state: Any) -> _Token | _Array:
    match instance, state:
        case _Token.UNSIGNED_BYTE, (3, "|" | b"|", None, None, None, -1, -1, 0):
            return _Token.UNSIGNED_BYTE
        case (
            _Token.EMPTY_ARRAY,
            (
                1,
                (int(n_rows), int(n_columns)),
                _Token.UNSIGNED_BYTE,
                int(by_columns),
                bytes(raw),
            ),
        ):
            if min(n_rows, n_columns) < 1 or n_rows * n_columns != len(raw):
                _refuse(f"{len(raw)} bytes for the shape {n_rows, n_columns}")
            order: Any = "F" if by_columns else "C"
            flat = np.frombuffer(raw, dtype=np.uint8)
            return _Array(flat.reshape((n_rows, n_columns), order=order))
    _refuse("a state that is not that of an array of unsigned bytes and two axes")


def _unwrap(value: Any) -> Any:
    if type(value) is dict:
        return {
            key: item.content if isinstance(item, _Array) else item
            for key, item in value.items()
        }
    return value.content if isinstance(value, _Array) else value


def _decode(utf8: bytes) -> str:
    try:
        return utf8.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("text that is not UTF-8")


def _encode(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        _refuse("text that does not stand for bytes")


def _refuse(got: str) -> NoReturn:
    raise pickle.UnpicklingError(got)
