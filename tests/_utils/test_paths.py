"""Paths that name nothing."""

from pathlib import Path

import pytest

from flatmin._utils.paths import check_path


@pytest.mark.parametrize("path", ["", "  ", "a\0b", "\ud800"])
def test_what_no_file_can_be_called(path):
    with pytest.raises(ValueError, match="memory must"):
        check_path("memory", path)


@pytest.mark.parametrize("path", [None, 3, b"a", ["a"]])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match="memory must be a str or a path"):
        check_path("memory", path)


@pytest.mark.parametrize("path", [".", "a/b", Path("a"), "ä"])
def test_what_is_one(path):
    check_path("memory", path)
