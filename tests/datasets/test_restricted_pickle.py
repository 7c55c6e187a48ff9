"""Reading pickles without running their code."""

import io
import os
import pickle
import warnings

import numpy as np
import pytest

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
    return load_plain_pickle(io.BytesIO(content), source="the file")


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


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY[:, ::2]])
def test_a_file_of_python_3(protocol, array):
    content = load(pickle.dumps({b"data": array, b"labels": [6, 9]}, protocol))
    np.testing.assert_array_equal(content[b"data"], array, strict=True)
    assert content[b"labels"] == [6, 9]


def test_numpys_own_byte_type_is_left_alone():
    load(PYTHON_2)
    load(pickle.dumps(ARRAY, 2))
    assert np.dtype("u1").metadata is None
    assert np.dtype("u1").str == "|u1"


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    content = pickle.dumps({b"data": Call(os.system, f"touch {trace}")})
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
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_other_name_is_found(thing, name, protocol):
    with pytest.raises(OSError, match=rf"the file must be .* asks for \S*{name}\."):
        load(pickle.dumps(thing, protocol))


def test_a_name_behind_an_allowed_one_is_not_reached():
    content = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(OSError, match=r"asks for numpy\.ndarray\.tofile"):
        load(content)


@pytest.mark.parametrize("dtype", ["i8", "O8", "f4", "S3"])
def test_arrays_of_another_type_are_refused(dtype):
    with pytest.raises(OSError, match=f"holds an array of type '{dtype}'"):
        load(pickle.dumps(np.ones(3).astype(dtype), 2))


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


def test_a_failing_disk_is_not_called_a_damaged_pickle():
    class Failing(io.BytesIO):
        def readinto(self, buffer):
            raise OSError("disk failure")

        read = readline = readinto

    with pytest.raises(OSError, match=r"^disk failure$"):
        load_plain_pickle(Failing(), source="the file")
