"""The script draws every Display."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "displays.py"


@pytest.mark.slow
def test_every_display_is_drawn(fashion_mnist_home, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATMIN_DATA", str(fashion_mnist_home))
    spec = importlib.util.spec_from_file_location("displays", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--output", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 7
