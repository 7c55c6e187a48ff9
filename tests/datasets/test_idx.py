"""Reading and writing IDX files."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from flatmin.datasets._idx import read_idx, write_idx

# Two images of 1 x 3 pixels, byte by byte.
HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3])
CONTENT = HEADER + bytes([1, 2, 3, 4, 5, 255])
ARRAY = np.array([[[1, 2, 3]], [[4, 5, 255]]], dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "images-idx3-ubyte.gz"


def test_read(path):
    path.write_bytes(gzip.compress(CONTENT))
    array = read_idx(path, (2, 1, 3))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, ARRAY, strict=True)


def test_lengths_are_big_endian_32_bit_numbers(path):
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 1, 2]) + bytes(258)))
    assert read_idx(path, (258,)).shape == (258,)


def test_write(path):
    write_idx(path, ARRAY)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_write_stores_a_view_in_row_major_order(path):
    write_idx(path, np.asfortranarray(ARRAY)[:, :, ::-1])
    np.testing.assert_array_equal(read_idx(path, (2, 1, 3)), ARRAY[:, :, ::-1])


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    def fail(self, target):
        raise OSError("disk full")

    write_idx(path, ARRAY)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_idx(path, np.zeros(3, dtype=np.uint8))
    np.testing.assert_array_equal(read_idx(path, (2, 1, 3)), ARRAY)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-12], id="cut"),
        pytest.param(
            lambda content: content[:12] + b"\xff" + content[13:], id="flipped"
        ),
        pytest.param(lambda content: CONTENT, id="not compressed"),
    ],
)
def test_a_damaged_gzip_file_is_named(path, damage):
    path.write_bytes(damage(gzip.compress(CONTENT)))
    with pytest.raises(OSError, match=r"idx3-ubyte.gz is not a complete gzip file"):
        read_idx(path, (2, 1, 3))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"\x01" + CONTENT[1:], "01 00 08"),
        (CONTENT[:2] + b"\x0d" + CONTENT[3:], "00 00 0d"),
        (b"\x00\x00", "00 00"),
        (b"", "an empty file"),
    ],
)
def test_another_format_is_refused(path, content, got):
    path.write_bytes(gzip.compress(content))
    with pytest.raises(OSError, match=f"first bytes are 00 00 08. Got {got}; replace"):
        read_idx(path, (2, 1, 3))


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"\x00"])
def test_a_wrong_number_of_pixels_is_refused(path, content):
    path.write_bytes(gzip.compress(content))
    got = "5 bytes" if len(content) < len(CONTENT) else "more"
    match = rf"must hold 6 bytes after its header.*\(2, 1, 3\). Got {got}; replace"
    with pytest.raises(OSError, match=match):
        read_idx(path, (2, 1, 3))


def test_an_incomplete_header_is_refused(path):
    path.write_bytes(gzip.compress(HEADER[:9]))
    with pytest.raises(OSError, match=r"must begin with 16 bytes.* Got 9 bytes"):
        read_idx(path, (2, 1, 3))


def test_a_missing_file_is_pythons_own_error(path):
    with pytest.raises(FileNotFoundError):
        read_idx(path, (2, 1, 3))


def test_another_shape_is_refused(path):
    path.write_bytes(gzip.compress(CONTENT))
    with pytest.raises(OSError, match=r"shape \(3, 2\). Got shape \(2, 1, 3\); repl"):
        read_idx(path, (3, 2))


@pytest.mark.parametrize("shape", [(2, 1, 3), (2**20, 2**10, 2**10)])
def test_a_file_that_grows_is_not_decompressed(path, shape):
    # 64 MB of zeros after the header, in 64 kB.
    header = HEADER[:4] + np.array(shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + bytes(2**26)))
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=r"images-idx3-ubyte.gz must hold"):
            read_idx(path, (2, 1, 3))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_flipped_bit_changes_nothing_or_is_refused(path):
    pixels = np.arange(60, dtype=np.uint8).reshape(20, 1, 3)
    write_idx(path, pixels)
    original = path.read_bytes()
    refused = 0
    for bit in range(8 * len(original)):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            array = read_idx(path, pixels.shape)
        except OSError as error:
            refused += path.name in str(error)
        else:
            np.testing.assert_array_equal(array, pixels)
    # All but some of the ten bytes of gzip's header, and the file's name in it.
    assert refused > 0.8 * 8 * (len(original) - 10 - len(path.name))
