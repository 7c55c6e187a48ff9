"""A kill inside a test, where a process of its own is not needed."""

from contextlib import contextmanager

import pytest

from flatmin._runs.checkpoint_files import CheckpointFolder


class Killed(BaseException):
    """What a kill is inside a test."""


@contextmanager
def killed_after(monkeypatch, n_writes):
    """Kill what is run inside once it has written so many checkpoints."""
    write, left = CheckpointFolder.write, [n_writes]

    def counted(self, content):
        write(self, content)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", counted)
        with pytest.raises(Killed):
            yield
