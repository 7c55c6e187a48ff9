"""Reading pickles without running their code."""

import os
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest

from flatmin.datasets import _restricted_pickle
from flatmin.datasets._restricted_pickle import load_plain_pickle

# What Python 2 and NumPy 1 wrote for {"data": array of shape (2, 3), "labels": [6, 9]},
# as in the original files: strings, not text, and integers where NumPy now has flags.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
    b"cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01bq\x06\x87Rq\x07(K\x01K\x02K\x03\x86"
    b"q\x08cnumpy\ndtype\nq\x09U\x02u1q\x0aK\x00K\x01\x87Rq\x0b(K\x03U\x01|q\x0cNNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0db\x89U\x06\x01\x02\x03\x04\x05\xff"
    b"q\x0etq\x0fbU\x06labelsq\x10]q\x11(K\x06K\x09eu."
)
ARRAY = np.array([[1, 2, 3], [4, 5, 255]], dtype=np.uint8)


def load(content):
    return load_plain_pickle(content, source="the file")


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_a_file_of_python_2():
    content = load(PYTHON_2)
    np.testing.assert_array_equal(content[b"data"], ARRAY, strict=True)
    assert content[b"labels"] == [6, 9]


@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY[:, ::2]])
def test_a_file_of_python_3(array):
    content = load(pickle.dumps({b"data": array, b"labels": [6, 9]}, 2))
    np.testing.assert_array_equal(content[b"data"], array, strict=True)
    assert content[b"labels"] == [6, 9]


def test_numpys_own_byte_type_is_left_alone():
    load(PYTHON_2)
    load(pickle.dumps(ARRAY, 2))
    assert np.dtype("u1").metadata is None
    assert np.dtype("u1").str == "|u1"


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    content = pickle.dumps({b"data": Call(os.system, f"touch {trace}")}, 2)
    pickle.loads(content)  # it would work
    assert trace.exists()
    trace.unlink()

    with pytest.raises(OSError, match=r"asks for (posix|nt)\.system. Nothing"):
        load(content)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        pytest.param(Call(eval, "1"), "eval", id="call"),
        pytest.param(eval, "eval", id="name"),
        pytest.param(Call(np.memmap, "file"), "memmap", id="class of numpy"),
        pytest.param(Call(np.load, "file"), "load", id="function of numpy"),
        pytest.param(Call(warnings.warn, "x"), "warn", id="function with a dot"),
    ],
)
def test_no_other_name_is_found(thing, name):
    with pytest.raises(OSError, match=rf"the file must be .* asks for \S*{name}\."):
        load(pickle.dumps(thing, 2))


def test_a_name_behind_an_allowed_one_is_not_reached():
    content = b"\x80\x02cnumpy\nndarray.tofile\n."
    with pytest.raises(OSError, match=r"asks for numpy\.ndarray\.tofile"):
        load(content)


@pytest.mark.parametrize("dtype", ["i8", "O8", "f4", "S3"])
def test_arrays_of_another_type_are_refused(dtype):
    with pytest.raises(OSError, match=f"Got an array of type '{dtype}'"):
        load(pickle.dumps(np.ones((3, 1)).astype(dtype), 2))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(PYTHON_2[:-30], id="cut"),
        pytest.param(PYTHON_2.replace(b"K\x03\x86", b"K\x04\x86"), id="shape"),
        pytest.param(b"label,pixel\n", id="text"),
    ],
)
def test_a_damaged_pickle_is_named(content):
    with pytest.raises(OSError, match=r"^the file must be a pickle .* replace it"):
        load(content)


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(OSError, match=r"in protocol 2\. Got something that does not"):
        load(pickle.dumps({b"labels": [6, 9]}, protocol))


def text(content):
    return b"X" + len(content).to_bytes(4, "little") + content


NDARRAY = b"cnumpy\nndarray\n"
EMPTY = b"cnumpy._core.multiarray\n_reconstruct\n" + NDARRAY + b"K\0\x85U\1b\x87R"
BYTE = b"cnumpy\ndtype\nU\2u1K\0K\1\x87R"
BYTE_STATE = b"(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
SIX = b"U\6\1\2\3\4\5\6"


def array(state):
    return EMPTY + b"(" + state + b"tb."


HOSTILE = {
    "ndarray of pointers": NDARRAY + b"K\2\x85U\1OU\x10" + b"A" * 16 + b"\x87R.",
    "ndarray of bytes": NDARRAY + b"K\2\x85U\2u1U\2ab\x87R.",
    "an array of objects": (
        b"cnumpy._core.multiarray\n_reconstruct\n" + NDARRAY + b"K\0\x85U\1O\x87R."
    ),
    "a reserved shape": (
        b"cnumpy._core.multiarray\n_reconstruct\n"
        + NDARRAY
        + b"J\xff\xff\xff\x7f\x85U\1b\x87R."
    ),
    "dtype of objects": b"cnumpy\ndtype\nU\1OK\0K\1\x87R.",
    "dtype with fields": BYTE + BYTE_STATE.replace(b"NNN", b"N}N") + b"b.",
    "state of another dtype": array(b"K\1K\2K\3\x86U\1O\x89" + SIX),
    "state with a wrong size": array(b"K\1K\2K\4\x86" + BYTE + b"\x89" + SIX),
    "state with a huge shape": array(
        b"K\1J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + BYTE + b"\x89" + SIX
    ),
    "state with negative sizes": array(
        b"K\1J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86" + BYTE + b"\x89" + SIX
    ),
    "state of one axis": array(b"K\1K\6\x85" + BYTE + b"\x89" + SIX),
    "state with a list": array(b"K\1K\2K\3\x86" + BYTE + b"\x89]"),
    "state that is no tuple": EMPTY + b"K\1b.",
    "a state for something else": b"}}b.",
    "a call of a string": b"U\1a)R.",
    "another codec": b"c_codecs\nencode\n"
    + text(b"QUJD")
    + text(b"base64")
    + b"\x86R.",
    "text beyond latin1": b"c_codecs\nencode\n"
    + text("\u0416".encode())
    + text(b"latin1")
    + b"\x86R.",
    "os.system": b"cos\nsystem\nU\4true\x85R.",
    "a name without an end": b"c" + b"a" * 10**6,
    "an extension": b"\x82\1.",
    "a persistent id": b"Pname\n.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "a new object": NDARRAY + b")\x81.",
    "a far memo": b"Nr\xff\xff\xff\x7f" + b"cos\nsystem\n.",
    "a memo that is not there": b"j\xff\xff\xff\xff.",
    "a list in itself": b"]q\0h\0a.",
    "a dict in itself": b"}q\0U\1ah\0s.",
    "an array in place of a function": array(b"K\1K\2K\3\x86" + BYTE + b"\x89" + SIX)[
        :-1
    ]
    + b"q\0h\0\x85R.",
    "an array in place of an argument": (
        b"cnumpy\ndtype\n"
        + array(b"K\1K\2K\3\x86" + BYTE + b"\x89" + SIX)[:-1]
        + b"K\0K\1\x87R."
    ),
    "a dict in a list": b"]}a.",
    "a key that hashes forever": b"}" + b")q\0" + b"h\0h\0\x86q\0" * 60 + b"Ns.",
    "a deep nest": b"]" + b"\x85" * 199_000 + b"}" + b"N" * 2_000,
    "many marks": b"(" * 300_000,
    "many dicts": b"}" * 300_000,
    "a long number": b"\x8b\xff\xff\xff\x7f1",
    "a long text": b"X\xff\xff\xff\xff1",
    "a long string": b"T\xff\xff\xff\x7f1",
    "a negative string": b"T\xff\xff\xff\xff1",
    "not UTF-8": text(b"\xff") + b".",
    "a pop too many": b"0.",
    "an odd dict": b"}(U\1aNU\1bu.",
    "items for nothing": b"N(K\1e.",
    "no mark": b"e.",
    "values left over": b"NN.",
    "nothing": b".",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pickle_is_refused_in_little_memory(content):
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=r"^the file must be a pickle .* replace it"):
            load(b"\x80\x02" + content)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_text_is_not_encoded_over_and_over(monkeypatch):
    monkeypatch.setattr(_restricted_pickle, "MAX_BYTES", 2000)
    once = b"h\0h\1h\2\x86R"
    content = (
        b"\x80\x02c_codecs\nencode\nq\0"
        + text(b"a" * 300)
        + b"q\1"
        + text(b"latin1")
        + b"q\2"
        + 9 * once
    )
    with pytest.raises(OSError, match="Got more than 2000 encoded bytes"):
        load(content)


def test_a_large_file_is_not_read(monkeypatch):
    monkeypatch.setattr(_restricted_pickle, "MAX_BYTES", 100)
    with pytest.raises(OSError, match="Got more than 100 bytes"):
        load(PYTHON_2)


def test_a_file_cut_anywhere_is_refused():
    for end in range(len(PYTHON_2)):
        with pytest.raises(OSError, match=r"^the file must be a pickle"):
            load(PYTHON_2[:end])


@pytest.mark.parametrize(
    "original",
    [PYTHON_2, pickle.dumps({b"data": ARRAY, b"labels": [6, 9]}, 2)],
    ids=["Python 2", "Python 3"],
)
def test_a_flipped_bit_gives_plain_values_or_is_refused(original):
    refused = 0
    for bit in range(8 * len(original)):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            content = load(bytes(flipped))
        except OSError as error:
            refused += str(error).startswith("the file must be a pickle")
        else:
            assert type(content) is dict
            for value in content.values():
                assert type(value) in (np.ndarray, list, bytes, int)
                assert type(value) is not np.ndarray or value.dtype == np.uint8
    assert refused > 4 * len(original)
