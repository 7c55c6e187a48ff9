"""Checkpoint files: whole or refused, never executed, and the last two kept."""

import errno
import hashlib
import io
import os
import pickle

import pytest
import torch

from flatmin._runs import checkpoint_files
from flatmin._runs.checkpoint_files import (
    CheckpointFolder,
    DamagedFileError,
    read_file,
    write_file,
)

CONTENT = {
    "theta": torch.randn(50, generator=torch.Generator().manual_seed(0)),
    "state": [None, True, 3, 0.1, "σ", (1, 2), {"step": torch.tensor(2)}],
}


def assert_equal(found, expected=CONTENT):
    assert torch.equal(found["theta"], expected["theta"])
    assert found["state"] == expected["state"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.flatmin"
    write_file(path, CONTENT)
    assert_equal(read_file(path))
    assert names(tmp_path) == ["a.flatmin"]


def test_the_strides_of_a_tensor_stay(tmp_path):
    path = tmp_path / "a.flatmin"
    held = torch.arange(12.0).reshape(3, 4).T[1:]
    write_file(path, held)
    found = read_file(path)
    assert torch.equal(found, held)
    assert found.stride() == held.stride()


def test_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a.flatmin"
    write_file(path, CONTENT)
    whole = path.read_bytes()
    for size in [*range(0, 100, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match="cut off"):
            read_file(path)


def test_every_altered_byte_is_noticed(tmp_path):
    path = tmp_path / "a.flatmin"
    write_file(path, CONTENT)
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"cut off|altered|format 2\. Got"):
            read_file(path)


def test_another_version_is_named(tmp_path):
    path = tmp_path / "a.flatmin"
    write_file(path, CONTENT)
    path.write_bytes(path.read_bytes().replace(b"checkpoint/2", b"checkpoint/1", 1))
    with pytest.raises(ValueError, match=r"of format 2\. Got format '1'") as error:
        read_file(path)
    assert not isinstance(error.value, DamagedFileError)


def write_payload(path, payload):
    """Write a file with a right header, as a forger does."""
    digest = hashlib.sha256(payload).hexdigest()
    path.write_bytes(
        f"flatmin.checkpoint/2 {len(payload)} {digest}\n".encode() + payload
    )


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_no_code_is_run(tmp_path, how):
    """Also of a file with the right header."""
    code = Code()
    code.target = str(tmp_path / "ran")
    buffer = io.BytesIO()
    torch.save(code, buffer) if how == "torch.save" else pickle.dump(code, buffer, 2)
    payload = buffer.getvalue()
    path = tmp_path / "a.flatmin"
    write_payload(path, payload)
    with pytest.raises(DamagedFileError, match="holds more than storable values"):
        read_file(path)
    assert names(tmp_path) == ["a.flatmin"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, name):
    path = tmp_path / "a.flatmin"
    write_file(path, CONTENT)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = os if name == "fsync" else checkpoint_files.Path
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, {"theta": torch.zeros(3), "state": []})
    assert_equal(read_file(path))
    assert names(tmp_path) == ["a.flatmin"]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    sync, move = os.fsync, checkpoint_files.Path.replace

    def synced(handle):
        order.append("sync")
        sync(handle)

    def moved(self, target):
        order.append("rename")
        return move(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checkpoint_files.Path, "replace", moved)
    write_file(tmp_path / "a.flatmin", CONTENT)
    assert order == ["sync", "rename", "sync"]


def test_a_folder_keeps_the_last_two(tmp_path):
    folder = CheckpointFolder(tmp_path / "new" / "run")
    assert folder.read() is None
    (folder.path / "notes.txt").write_text("mine")
    for number in range(4):
        folder.write({"number": number})
    kept = ["checkpoint-00000002.flatmin", "checkpoint-00000003.flatmin", "notes.txt"]
    assert names(folder.path) == kept
    assert CheckpointFolder(folder.path).read() == {"number": 3}


def test_of_a_damaged_one_the_one_before_is_used_and_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for number in range(3):
        folder.write({"number": number})
    (tmp_path / "checkpoint-00000002.flatmin").write_bytes(b"")
    folder = CheckpointFolder(tmp_path)
    with pytest.warns(UserWarning, match=r"cut off.*Going on .*checkpoint-00000001"):
        assert folder.read() == {"number": 1}
    folder.write({"number": 5})
    assert names(tmp_path) == [
        "checkpoint-00000001.flatmin",
        "checkpoint-00000003.flatmin",
    ]
    assert folder.read() == {"number": 5}


def test_nothing_whole_is_an_error(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.write({})
    folder.write({})
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=r"No checkpoint .*can be used.*Empty"):
        CheckpointFolder(tmp_path).read()
