"""What the experiments share: their options, and what is stored with a result."""

import argparse
import json
import math
import os
import platform
import re
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
    start = time.perf_counter()
    result = {
        "command": _command(),
        "seed": arguments.seed,
        "full": arguments.full,
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()}
        | {
            name: version(name)
            for name in ("flatmin", "torch", "numpy", "scipy", "scikit-learn")
        },
    }
    result |= run(arguments)
    result["seconds"] = round(time.perf_counter() - start, 1)
    text = json.dumps(_rounded(result), indent=1)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
    return json.loads(text)


def save_figure(figure, arguments, suffix=""):
    """Save a picture beside the JSON file, if there is one."""
    if arguments.output is not None:
        name = f"{arguments.output.stem}{suffix}.png"
        path = arguments.output.with_name(name)
        figure.savefig(path, dpi=120)
        print(path)


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
