"""Add a checksum to comparisons of an earlier revision, which were stored without one.

``ComparisonResult.from_json`` refuses a file without a checksum, since nothing tells
whether somebody has edited it. Whoever knows that nobody has writes it anew::

    python benchmarks/add_checksum.py RESULT.json ...

The numbers stay what they are; columns of several lengths are refused. Of the machine
only the operating system stays, and not its build.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flatmin._runs.checkpoint_files import replace_file
from flatmin.comparison._files import checksum

BEFORE, AFTER = "flatmin.comparison/1", "flatmin.comparison/2"


def add_checksum(path: Path) -> None:
    """Rewrite one file.

    Parameters
    ----------
    path : pathlib.Path

    Raises
    ------
    ValueError
        If it holds something else, or a column lacks an entry.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != BEFORE:
        raise ValueError(
            f"{path} must be of the format {BEFORE!r}. Got {content.get('format')!r}."
        )
    for part in ("table", "units"):
        lengths = {name: len(column) for name, column in content[part].items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"The columns of {part} in {path} must be of one length. Got {lengths}."
            )
    for origin in content["provenance"]:
        machine = origin["machine"]
        machine["platform"] = machine["platform"].partition("-")[0]
    content["format"] = AFTER
    content["sha256"] = checksum(content)
    text = json.dumps(content, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def main() -> None:
    """Convert the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="results to convert")
    for path in parser.parse_args().paths:
        add_checksum(path)
        print(f"{path}: checksum added")


if __name__ == "__main__":
    main()
