"""The report on a small network: nothing disagrees, and what is wrong is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="a release has no benchmarks"),
]

WRONG = """
import sys
from dataclasses import replace
sys.argv = ["report.py", "--quick", "--problems", "lstm"]
import report
from flatmin import measures
right = measures.gradient_signal_to_noise
def wrong(risk, theta):
    found = right(risk, theta)
    return replace(found, value=1.01 * found.value)
measures.gradient_signal_to_noise = wrong
report.main()
"""


def run(*words):
    root = FOLDER.parent
    path = os.pathsep.join([str(root), str(FOLDER), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_transformer_agrees(tmp_path):
    words = ("--quick", "--problems", "transformer", "--json", str(tmp_path))
    done = run(str(FOLDER / "report.py"), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report_transformer.json").read_text())
    assert report["disagree"] == 0
    assert len(report["rows"]) > 100
    assert all(row["agrees"] for row in report["rows"])
    assert report["versions"]["torch"] == torch.__version__


def test_a_wrong_number_is_found():
    done = run("-c", WRONG)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "DISAGREES" in line]
    assert line.startswith("gradient_signal_to_noise")
