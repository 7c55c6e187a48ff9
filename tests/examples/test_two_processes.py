import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_of_torchrun():
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        str(ROOT / "examples/plot_two_processes.py"),
    ]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=400, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "2 processes: accuracy" in ran.stdout
    assert ran.stdout.count("Tr(Σ)") == 1  # the first process alone prints
    assert "rank 1 raised: θ must have shape" in ran.stdout
