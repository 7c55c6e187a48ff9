"""Start a program in several processes, as torchrun does, and collect what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(program, folder, *, size=2, arguments=(), timeout=300):
    """Return (exit code, standard error, what was written as JSON) of each rank."""
    folder.mkdir(parents=True, exist_ok=True)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    running = []
    for rank in range(size):
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", f"tests.distributed.{program}", str(folder)]
        with (folder / f"err{rank}").open("w") as err:
            running.append(
                subprocess.Popen([*command, *arguments], env=env, stderr=err, cwd=ROOT)
            )
    try:
        codes = [process.wait(timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        (code, (folder / f"err{rank}").read_text(), _read(folder / f"said{rank}.json"))
        for rank, code in enumerate(codes)
    ]


def _read(file):
    return json.loads(file.read_text()) if file.exists() else None
