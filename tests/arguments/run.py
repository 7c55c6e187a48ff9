"""All wrong arguments, which takes about an hour; the test takes a sample.

From the root of the repository::

    python -m tests.arguments.run --shard 0 4 --out wrong-0.json
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import faulthandler
import json
import os
import sys
import tempfile
from pathlib import Path

from ._calls import calls
from ._trial import Outcome, try_call


def run(shard: int, n_shards: int, every: int, out: Path) -> None:
    """Try every n-th call; what is done is in the file at any time."""
    faulthandler.enable()
    found: list[Outcome] = []
    for number, call in enumerate(calls().values()):
        if number % n_shards != shard:
            continue
        print(call.name, file=sys.stderr, flush=True)
        found += try_call(call, every, number)
        out.write_text(json.dumps([dataclasses.asdict(one) for one in found]))
    counts = collections.Counter(one.kind for one in found)
    print(len(found), dict(counts))


def main() -> None:
    """Run a shard in a folder of its own: names of files are among the values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", nargs=2, type=int, default=(0, 1))
    parser.add_argument("--every", type=int, default=1, help="every n-th value")
    parser.add_argument("--out", type=Path, default=Path("wrong.json"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(*arguments.shard, arguments.every, out)
        os.chdir("/")


if __name__ == "__main__":
    main()
