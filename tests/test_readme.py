"""The README's code runs and prints what it says."""

import doctest
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_readme_examples():
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testfile(
        str(README), module_relative=False, optionflags=flags, encoding="utf-8"
    )
    assert result.attempted > 20
    assert result.failed == 0
