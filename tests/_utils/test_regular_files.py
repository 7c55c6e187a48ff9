"""What is no regular file is refused at once, by everything that reads a file."""

import os

import numpy as np
import pytest

from flatmin._runs.checkpoint_files import (
    CheckpointFolder,
    DamagedFileError,
    read_file,
    write_file,
)
from flatmin._utils.regular_files import is_there, open_regular
from flatmin.comparison import ComparisonResult
from flatmin.comparison._files import _read_params
from flatmin.datasets._cifar10_files import read_batches
from flatmin.datasets._idx import read_idx

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs named pipes and links")


def read_params(path):
    index = {"method": ["gd"], "seed": [0], "phase": ["noise"], "sha256": ["0"]}
    return _read_params(path, index)


ROW_RULES = {
    "open": open_regular,
    "there": is_there,
    "checkpoint": read_file,
    "result": ComparisonResult.from_json,
    "params": read_params,
    "idx": lambda path: read_idx(path, (3,)),
    "archive": lambda path: read_batches(path, ["data_batch_1"]),
    "batch": lambda path: read_batches(path.parent, [path.name]),
}


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
@pytest.mark.parametrize("name", ROW_RULES)
def test_no_reader_waits(tmp_path, name, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else os.devnull)
    if name == "archive" and kind == "folder":
        path = tmp_path / "file"
        (path / "data_batch_1").mkdir()
    with pytest.raises((OSError, DamagedFileError), match=r"pipe|folder|loop|link|dev"):
        ROW_RULES[name](path)


@pytest.mark.parametrize("name", [n for n in ROW_RULES if n not in ("open", "there")])
def test_a_file_of_a_terabyte_of_holes(tmp_path, name):
    path = tmp_path / "file"
    with path.open("wb") as file:
        try:
            file.truncate(2**40)
        except OSError:
            pytest.skip("the file system has no such files")
    with pytest.raises((OSError, ValueError), match="file"):
        ROW_RULES[name](path)


def test_what_is_missing_is_missing(tmp_path):
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert not is_there(path)
        with pytest.raises(FileNotFoundError):
            open_regular(path)
    (tmp_path / "c").write_bytes(b"12")
    assert is_there(tmp_path / "c")
    with open_regular(tmp_path / "c") as file:
        assert file.read() == b"12"


def test_the_checkpoint_before_a_pipe_is_used(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.write([1])
    os.mkfifo(tmp_path / "checkpoint-00000001.flatmin")
    with pytest.warns(UserWarning, match="named pipe.*from the one before"):
        assert CheckpointFolder(tmp_path).read() == [1]


def test_nothing_is_written_through_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / "a.part").symlink_to(elsewhere)
    write_file(tmp_path / "a", np.ones(2))
    os.mkfifo(tmp_path / "b.part")
    write_file(tmp_path / "b", np.ones(2))
    assert elsewhere.read_text() == "kept"
    np.testing.assert_array_equal(read_file(tmp_path / "b"), np.ones(2))
