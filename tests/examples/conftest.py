"""Examples are scripts: each is loaded from its path, anew for each test."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_example(monkeypatch):
    """Return the function from an example's name to its module."""

    def load(name):
        monkeypatch.syspath_prepend(str(FOLDER / "paper"))
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
