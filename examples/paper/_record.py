"""What the experiments share: their options, and what is stored with a result."""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch


def parse_arguments(doc, argv=None):
    parser = argparse.ArgumentParser(description=doc.strip().splitlines()[1])
    parser.add_argument("--full", action="store_true", help="the paper's protocol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=None, help="JSON file; pictures go beside it"
    )
    parser.add_argument(
        "--plot-only", action="store_true", help="draw what --output holds"
    )
    arguments = parser.parse_args(argv)
    if arguments.plot_only and arguments.output is None:
        parser.error("--plot-only needs --output.")
    return arguments


def obtain(arguments, run):
    """Return the stored result, or that of ``run(arguments)``, stored if asked."""
    if arguments.plot_only:
        return json.loads(arguments.output.read_text())
    origin = {"seed": arguments.seed, "full": arguments.full}
    return store(arguments.output, lambda: origin | run(arguments))


def resumed(arguments, name, run, *args):
    """Return ``run(*args)``, from its own file if an earlier call came that far."""
    if arguments.output is None:
        return run(*args)
    path = arguments.output.with_suffix("") / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else store(path, run, *args)


def store(path, run, *args):
    """Return ``run(*args)`` with what it was made by, stored if there is a path."""
    start = time.perf_counter()
    origin = provenance()
    result = origin | run(*args)
    result["seconds"] = round(time.perf_counter() - start, 1)
    text = json.dumps(_rounded(result), ensure_ascii=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")  # a file is whole, or not there
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    return json.loads(text)


def provenance(device="cpu"):
    """Return revision, command, machine and versions."""
    return {
        "revision": _revision(),
        "command": _command(),
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()}
        | {
            name: version(name)
            for name in ("flatmin", "torch", "numpy", "scipy", "scikit-learn")
        },
    }


def save_figure(figure, arguments, suffix=""):
    """Save a picture beside the JSON file, if there is one."""
    if arguments.output is not None:
        name = f"{arguments.output.stem}{suffix}.png"
        path = arguments.output.with_name(name)
        figure.savefig(path, dpi=120)
        print(path)


def _revision():
    """Return the commit that this file belongs to, or None outside of a checkout."""

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit


def _command():
    """Return how this was called, without the folders of this machine."""
    here = f"{Path.cwd()}{os.sep}"
    return "python " + " ".join(word.replace(here, "") for word in sys.argv)


def _processor():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.processor()


def _rounded(value):
    """Keep six digits of every float; what is not finite has no name in JSON."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
